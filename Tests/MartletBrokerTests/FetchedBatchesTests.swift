import MartletLogModel
import NIOCore
import Testing

@testable import MartletBroker
@testable import MartletReplication

@Suite struct `Fetched batches` {
    private static func fetch(_ offset: Int64, last: Int32? = nil, leader: Int32 = 5) -> ReplicaFetch {
        ReplicaFetch(
            leader: BrokerID(1), leaderEpoch: LeaderEpoch(leader), offset: Offset(offset),
            lastFetchedEpoch: last.map { LeaderEpoch($0) })
    }

    private static func joined(_ parts: ByteBuffer...) -> ByteBuffer {
        var whole = ByteBuffer(string: "before")
        whole.moveReaderIndex(forwardBy: 6)
        for part in parts { whole.writeImmutableBuffer(part) }
        return whole
    }

    @Test func `whole batches that continue what was asked are taken as they are`() throws {
        let records = Self.joined(
            try storedBatches(from: 10, epoch: 2, 3), try storedBatches(from: 13, epoch: 2, 1),
            // Compaction left a gap.
            try storedBatches(from: 20, epoch: 5, 2))
        let batches = FetchedBatches(records, answering: Self.fetch(10, last: 2))
        #expect(batches.sound == records)
        #expect((batches.end, batches.flaw, batches.remainder) == (Offset(22), nil, 0))
    }

    @Test func `no records are no flaw`() {
        for records in [nil, ByteBuffer()] {
            let batches = FetchedBatches(records, answering: Self.fetch(4))
            #expect((batches.sound, batches.end, batches.flaw) == (nil, Offset(4), nil))
        }
    }

    @Test func `each bit of the checked part counts`() throws {
        let good = try storedBatches(from: 10, epoch: 2, 2)
        let batch = try storedBatches(from: 12, epoch: 2, 2)
        // Base offset and leader epoch lie outside of the checksum; the length is no damage if it points further.
        for byte in 16..<batch.readableBytes {
            let records = Self.joined(good, batch.damaged(atByte: byte))
            let batches = FetchedBatches(records, answering: Self.fetch(10, last: 2))
            #expect(batches.sound?.readableBytes == good.readableBytes, "byte \(byte)")
            #expect(batches.end == Offset(12))
            guard case .unsound(_, at: Offset(12)) = batches.flaw else {
                Issue.record("byte \(byte): \(String(describing: batches.flaw))")
                continue
            }
        }
    }

    @Test func `every cut leaves the whole batches before it`() throws {
        let good = try storedBatches(from: 0, epoch: 2, 2)
        let all = Self.joined(good, try storedBatches(from: 2, epoch: 2, 2))
        for length in good.readableBytes..<all.readableBytes {
            let cut = all.getSlice(at: all.readerIndex, length: length)
            var batches = FetchedBatches(cut, answering: Self.fetch(0))
            batches.requireWhole()
            #expect(batches.sound == good)
            #expect((batches.flaw, batches.remainder) == (nil, length - good.readableBytes))
        }
        for length in 1..<good.readableBytes {
            var batches = FetchedBatches(good.getSlice(at: 0, length: length), answering: Self.fetch(0))
            #expect((batches.sound, batches.flaw) == (nil, nil))
            batches.requireWhole()
            #expect(batches.flaw == .incomplete(byteCount: length))
        }
    }

    @Test func `a batch that begins before the end is a flaw`() throws {
        let batches = FetchedBatches(try storedBatches(from: 9, epoch: 2, 3), answering: Self.fetch(10))
        #expect((batches.sound, batches.flaw) == (nil, .overlap(base: Offset(9), end: Offset(10))))
        let good = try storedBatches(from: 10, epoch: 2, 3)
        let again = FetchedBatches(Self.joined(good, good), answering: Self.fetch(10))
        #expect((again.sound, again.flaw) == (good, .overlap(base: Offset(10), end: Offset(13))))
    }

    @Test func `leader epochs neither fall nor pass the leader's`() throws {
        let below = FetchedBatches(try storedBatches(from: 0, epoch: 2, 1), answering: Self.fetch(0, last: 3))
        #expect(below.flaw == .epochFell(LeaderEpoch(2), after: LeaderEpoch(3), at: .zero))
        #expect(below.sound == nil)
        let none = FetchedBatches(try storedBatches(from: 0, epoch: -1, 1), answering: Self.fetch(0))
        #expect(none.flaw == .epochFell(LeaderEpoch(-1), after: .zero, at: .zero))
        let good = try storedBatches(from: 0, epoch: 4, 1)
        let falling = FetchedBatches(
            Self.joined(good, try storedBatches(from: 1, epoch: 3, 1)), answering: Self.fetch(0))
        #expect(falling.flaw == .epochFell(LeaderEpoch(3), after: LeaderEpoch(4), at: Offset(1)))
        #expect(falling.sound == good)
        let ahead = FetchedBatches(try storedBatches(from: 0, epoch: 6, 1), answering: Self.fetch(0, last: 3))
        #expect(ahead.flaw == .epochAhead(LeaderEpoch(6), leader: LeaderEpoch(5), at: .zero))
    }
}
