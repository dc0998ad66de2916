import MartletLogModel
import MartletStorage
import NIOCore
import Testing

@Suite struct LeaderEpochTests {
    private func cache(_ entries: [(Int32, Int64)]) -> LeaderEpochCache {
        var cache = LeaderEpochCache()
        for (epoch, start) in entries { cache.assign(LeaderEpoch(epoch), startOffset: Offset(start)) }
        return cache
    }

    @Test func `the end of an epoch is the start of the next one, of the latest the log end`() {
        let cache = cache([(1, 0), (3, 10), (4, 25)])
        func end(_ epoch: Int32) -> (Int32, Int64)? {
            cache.endOffset(for: LeaderEpoch(epoch), logEnd: Offset(30)).map { ($0.epoch.rawValue, $0.endOffset.rawValue) }
        }
        #expect(end(4)! == (4, 30))
        #expect(end(3)! == (3, 25))
        // KIP-279: an epoch that wrote nothing here is answered with the largest one below it.
        #expect(end(2)! == (1, 10))
        #expect(end(1)! == (1, 10))
        // Older than everything: the asker cuts to where we begin.
        #expect(end(0)! == (0, 0))
        #expect(end(5) == nil)
        #expect(LeaderEpochCache().endOffset(for: .zero, logEnd: .zero) == nil)
    }

    @Test func `epochs only rise, and a later start replaces what contradicts it`() {
        var cache = cache([(1, 0), (3, 10)])
        let changes = [(3, 12), (2, 12), (4, 10)].map { epoch, start in
            cache.assign(LeaderEpoch(epoch), startOffset: Offset(start))
        }
        #expect(changes == [false, false, true])
        #expect(cache.entries.map(\.epoch.rawValue) == [1, 4])
    }

    @Test func `cuts at both ends keep what is left right`() {
        var cache = cache([(1, 0), (3, 10), (4, 25)])
        cache.truncate(toStart: Offset(12))
        #expect(cache.entries.map(\.startOffset.rawValue) == [12, 25])
        #expect(cache.epoch(at: Offset(12)) == LeaderEpoch(3))
        cache.truncate(toEnd: Offset(25))
        #expect(cache.latest == LeaderEpoch(3))
        cache.truncate(toEnd: Offset(12))
        #expect(cache.entries.isEmpty)
    }

    @Test func `the file has Kafka's text and nonsense is refused`() {
        let cache = cache([(1, 0), (3, 10)])
        #expect(String(buffer: cache.encode()) == "0\n2\n1 0\n3 10\n")
        #expect(LeaderEpochCache(decoding: cache.encode()) == cache)
        for text in ["", "0\n1\n", "0\n2\n3 10\n1 0\n", "0\n1\nx 1\n", "0\n2\n1 5\n2 5\n", "1\n0\n"] {
            #expect(LeaderEpochCache(decoding: ByteBuffer(string: text)) == nil, "\(text)")
        }
    }
}
