import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

@testable import MartletClient

/// The bookkeeping of a share group's member, without any broker.
@Suite struct ShareStateTests {
    private let id = UniversalID(high: 1, low: 1)
    private var a: SharePlace { SharePlace(topicID: id, partition: 0) }
    private var b: SharePlace { SharePlace(topicID: id, partition: 1) }

    // MARK: Acknowledgements

    @Test func `acknowledgements are told in order, once, in as few runs as possible`() {
        var pending = ShareAcknowledgements()
        #expect(pending.isEmpty)
        for (offset, word) in [
            (5, ShareWord.accept), (3, .accept), (4, .accept), (9, .release), (10, .accept), (6, .gap),
        ] {
            pending.add(ShareRun(first: Int64(offset), last: Int64(offset), word: word), of: a)
        }
        pending.add(ShareRun(first: 1, last: 7, word: .reject), of: b)
        #expect(pending.places == [a, b])
        let taken = pending.take()
        #expect(
            taken[a] == [
                ShareRun(first: 3, last: 5, word: .accept), ShareRun(first: 6, last: 6, word: .gap),
                ShareRun(first: 9, last: 9, word: .release), ShareRun(first: 10, last: 10, word: .accept),
            ])
        #expect(taken[b] == [ShareRun(first: 1, last: 7, word: .reject)])
        #expect(pending.isEmpty)
        #expect(pending.take().isEmpty)
    }

    // MARK: Acquired offsets

    private func run(_ first: Int64, _ last: Int64, _ word: ShareWord) -> ShareRun {
        ShareRun(first: first, last: last, word: word)
    }

    @Test func `records outside of what was acquired are not handed out, offsets without a record are gaps`()
    {
        var acquired = AcquiredOffsets([(2, 4, 1), (8, 9, 3)])
        let counts = [0, 1, 3, 4, 5, 9, 12].map { acquired.take($0) }
        #expect(counts == [nil, nil, 1, 1, nil, 3, nil])
        acquired.finish(.gap)
        #expect(acquired.runs == [run(2, 2, .gap), run(8, 8, .gap)])
    }

    @Test func `what cannot be read is said of the rest`() {
        var acquired = AcquiredOffsets([(0, 9, 1), (20, 29, 2)])
        #expect(acquired.take(0) == 1)
        acquired.pass(before: 5, .reject)
        #expect(acquired.take(5) == 1)
        acquired.finish(.release)
        #expect(acquired.runs == [run(1, 4, .reject), run(6, 9, .release), run(20, 29, .release)])
    }

    @Test func `ranges that are none are left out, and a vast one costs nothing`() {
        var acquired = AcquiredOffsets([
            (5, 4, 1), (-3, 2, 1), (10, .max, 1), (10, .max - 1, 2), (12, 13, 1),
        ])
        #expect(acquired.take(1 << 40) == 2)
        #expect(acquired.take(1 << 40) == nil)
        acquired.finish(.release)
        #expect(acquired.runs == [run(10, (1 << 40) - 1, .gap), run((1 << 40) + 1, .max - 1, .release)])
    }

    // MARK: Decoding

    /// Two batches with the offsets 0 to 4 each, of which 1 to 9 are said to be acquired.
    private func answer() throws -> ShareFetchResponse.PartitionData {
        var builder = RecordBatchBuilder()
        for number in 0..<5 {
            try builder.append(key: nil, value: ByteBuffer(string: "\(number)"), timestamp: 0)
        }
        let batch = try builder.build()
        var second = batch
        second.setInteger(Int64(5), at: second.readerIndex)
        var item = ShareFetchResponse.PartitionData()
        item.records = batch
        item.records.writeImmutableBuffer(second)
        var range = ShareFetchResponse.AcquiredRecords()
        (range.firstOffset, range.lastOffset, range.deliveryCount) = (1, 12, 3)
        item.acquiredRecords = [range]
        return item
    }

    private func decode(_ item: ShareFetchResponse.PartitionData) -> (
        taken: [Int64], runs: [ShareRun], isDamaged: Bool
    ) {
        var taken: [Int64] = []
        let (runs, damage) = ShareDecoder(inflatedByteLimit: 1 << 20).decode(item) { view, deliveryCount, _ in
            #expect(deliveryCount == 3)
            taken.append(view.offset.rawValue)
        }
        return (taken, runs, damage != nil)
    }

    @Test func `records are found in several batches, and the rest is a gap`() throws {
        let (taken, runs, isDamaged) = decode(try answer())
        #expect(taken == Array(1...9) && !isDamaged)
        #expect(runs == [run(10, 12, .gap)])
    }

    @Test func `what was cut off or damaged is given back, and nothing is forgotten`() throws {
        let whole = try answer()
        var generator = SeededGenerator(seed: 20_261_121)
        var damaged: [ShareFetchResponse.PartitionData] = []
        for length in 0..<whole.records.readableBytes {
            var item = whole
            item.records = try #require(whole.records.getSlice(at: whole.records.readerIndex, length: length))
            damaged.append(item)
        }
        for _ in 0..<500 {
            var item = whole
            let place =
                Int.random(in: 0..<item.records.readableBytes, using: &generator) + item.records.readerIndex
            let byte = try #require(item.records.getInteger(at: place, as: UInt8.self))
            item.records.setInteger(byte ^ (1 << UInt8.random(in: 0..<8, using: &generator)), at: place)
            damaged.append(item)
        }
        for item in damaged {
            let (taken, runs, _) = decode(item)
            let told = runs.flatMap { Array($0.first...$0.last) }
            #expect((taken + told).sorted() == Array(1...12))
        }
        let cut = decode(damaged[whole.records.readableBytes - 1])
        #expect(cut.taken == [1, 2, 3, 4] && cut.runs == [run(5, 12, .release)] && !cut.isDamaged)
    }

    // MARK: Session

    @Test func `a session tells everything once, then what changes`() {
        var session = ShareSession()
        #expect(!session.isOpen)
        let opening = session.plan([a])
        #expect(opening == .init(epoch: 0, added: [a], forgotten: []))
        session.fetched()
        let grown = session.plan([a, b])
        #expect(grown == .init(epoch: 1, added: [b], forgotten: []))
        session.fetched()
        session.advance()
        let shrunk = session.plan([b])
        #expect(shrunk == .init(epoch: 3, added: [], forgotten: [a]))
        session.reset()
        let anew = session.plan([b])
        #expect(anew == .init(epoch: 0, added: [b], forgotten: []))
    }

    @Test func `a plan that was not carried out is made again`() {
        var session = ShareSession()
        _ = session.plan([a])
        session.fetched()
        _ = session.plan([a, b])
        let again = session.plan([a, b])
        #expect(again.added == [b])
    }

    // MARK: Member

    @Test func `a member joins, is told its partitions, and starts over when it is fenced`() {
        var member = ShareMember()
        let silent = member.nextHeartbeat()
        #expect(silent == nil)
        member.subscribe(["t"])
        let join = member.nextHeartbeat()
        #expect(join == .init(epoch: 0, topics: ["t"], isFull: true))
        member.answered(epoch: 4, assignment: [id: [0, 1]])
        #expect(member.isJoined && !member.hasNews)
        #expect(member.places == [a, b])
        let idle = member.nextHeartbeat()
        #expect(idle == .init(epoch: 4, topics: nil, isFull: false))
        member.answered(epoch: 4, assignment: nil)
        #expect(member.places.count == 2)
        member.unanswered()
        let full = member.nextHeartbeat()
        #expect(full == .init(epoch: 4, topics: ["t"], isFull: true))
        member.fenced()
        #expect(member.places.isEmpty)
        let rejoin = member.nextHeartbeat()
        #expect(rejoin == .init(epoch: 0, topics: ["t"], isFull: true))
    }

    @Test func `topics that change while a heartbeat is on its way are told by the next`() {
        var member = ShareMember()
        member.subscribe(["t"])
        _ = member.nextHeartbeat()
        member.subscribe(["u"])
        member.answered(epoch: 1, assignment: [:])
        #expect(member.hasNews)
        let next = member.nextHeartbeat()
        #expect(next == .init(epoch: 1, topics: ["u"], isFull: false))
    }

    // MARK: Configuration

    @Test func `settings that cannot work are named`() throws {
        func refusal(_ change: (inout ShareConsumerConfiguration) -> Void) throws -> String? {
            var configuration = try ShareConsumerConfiguration(bootstrap: "a:1", groupID: "g")
            change(&configuration)
            do {
                _ = try ShareConsumer(configuration)
                return nil
            } catch {
                #expect(error.code == .invalidConfiguration)
                return error.message
            }
        }
        #expect(try refusal { _ in } == nil)
        #expect(try refusal { $0.groupID = "" }?.contains("groupID") == true)
        #expect(try refusal { $0.maximumRecords = 0 }?.contains("maximumRecords") == true)
        #expect(try refusal { $0.fetchMinimumBytes = 0 }?.contains("fetchMinimumBytes") == true)
        #expect(try refusal { $0.fetchMaximumWait = .zero }?.contains("fetchMaximumWait") == true)
        #expect(try refusal { $0.fetchMaximumBytes = 0 }?.contains("fetchMaximumBytes") == true)
        #expect(try refusal { $0.pollIntervalLimit = .zero }?.contains("pollIntervalLimit") == true)
    }
}
