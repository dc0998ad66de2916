import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// Random operations against the simplest thing that could be right: a list of batches.
@Suite struct ModelTests {
    struct Model {
        var batches: [(base: Int64, last: Int64, bytes: ByteBuffer)] = []
        var start: Int64 = 0
        var end: Int64 { batches.last.map { $0.last + 1 } ?? 0 }

        func locate(_ from: Int64, _ bound: Int64, _ maxBytes: Int, minOne: Bool) -> (first: Int, room: Int)? {
            guard let first = batches.firstIndex(where: { $0.last >= from }), batches[first].last < bound else { return nil }
            let room = max(maxBytes, minOne ? batches[first].bytes.readableBytes : 0)
            return batches[first].bytes.readableBytes <= room ? (first, room) : nil
        }
    }

    @Test(arguments: 0..<(isLong ? 400 : 25) as Range<UInt64>)
    func `a log answers like a list of batches`(seed: UInt64) throws {
        var generator = SplitMix64(seed: seed)
        var configuration = LogConfiguration.small(segmentBytes: Int.random(in: 400...4000, using: &generator))
        configuration.indexIntervalBytes = Int.random(in: 1...800, using: &generator)
        configuration.segmentIndexBytes = 8 * Int.random(in: 2...100, using: &generator)
        let disk = SimulatedDisk()
        var directory = try Fixture.directory(disk)
        var log = try Fixture.log(directory, configuration)
        var model = Model()
        var epoch: Int32 = 0
        for step in 0..<150 {
            let place: Comment = "seed \(seed) step \(step)"
            switch Int.random(in: 0..<30, using: &generator) {
            case 0..<8:
                for _ in 0...Int.random(in: 0...4, using: &generator) {
                    let batch = Fixture.batch(
                        count: Int.random(in: 1...4, using: &generator),
                        bytes: Int.random(in: 0...80, using: &generator), seed: generator.next())
                    var copy = ByteBuffer(bytes: batch.readableBytesView)
                    let outcome = try log.stage(
                        &copy, header: try RecordBatchHeader(reading: copy), leaderEpoch: LeaderEpoch(epoch),
                        now: Fixture.now)
                    guard case .staged(let base, let last, _) = outcome else {
                        Issue.record("\(outcome)", sourceLocation: #_sourceLocation)
                        return
                    }
                    #expect(base.rawValue == model.end, place)
                    model.batches.append((base.rawValue, last.rawValue, copy))
                }
                try log.writeStaged()
            case 8..<11:
                try Fixture.flush(log)
                #expect(log.flushedEndOffset.rawValue == model.end, place)
            case 11:
                epoch += 1
            case 12:
                try Fixture.close(log, directory)
                directory = try Fixture.directory(disk)
                log = try Fixture.log(directory, configuration)
            case 13:
                let target = Int64.random(in: 0...log.flushedEndOffset.rawValue, using: &generator)
                if let work = try log.deleteRecords(before: Offset(target), highWatermark: log.flushedEndOffset) {
                    try work.run()
                    try log.adoptLogStart(now: Fixture.now)
                    model.start = max(model.start, target)
                }
            case 14:
                try Fixture.flush(log)
                log.releaseIdle()
            case 15:
                guard model.end > model.start else { continue }
                let target = Int64.random(in: model.start...model.end, using: &generator)
                // Cut at a batch boundary, as followers do.
                if let batch = model.batches.first(where: { $0.base >= target }), batch.base >= model.start {
                    try log.truncate(to: Offset(batch.base))
                    model.batches.removeAll { $0.base >= batch.base }
                    if model.batches.isEmpty { return }
                }
            case 16:
                if let removal = log.purgeDeleted(now: Timestamp(milliseconds: Fixture.now.rawValue + 1_000_000)) {
                    try removal.run()
                }
            case _:
                guard model.end > model.start else { continue }
                let from = Int64.random(in: model.start...model.end, using: &generator)
                let bound = Int64.random(in: model.start...model.end, using: &generator)
                let maxBytes = Int.random(in: 1...1500, using: &generator)
                let minOne = Bool.random(using: &generator)
                let region = try log.locate(
                    from: Offset(from), upTo: Offset(bound), maxBytes: maxBytes, minOneBatch: minOne)
                guard let (first, room) = model.locate(from, bound, maxBytes, minOne: minOne) else {
                    #expect(region.isEmpty, place)
                    continue
                }
                var bytes = ByteBuffer()
                #expect(try log.read(region, into: &bytes, nonBlocking: false) == .read)
                #expect(region.byteCount <= room, place)
                #expect(!region.isEmpty && region.baseOffset.rawValue == model.batches[first].base, place)
                var index = first
                while bytes.readableBytes > 0, index < model.batches.count {
                    let expected = model.batches[index]
                    let found = bytes.readSlice(length: expected.bytes.readableBytes)
                    #expect(found == expected.bytes, place)
                    #expect(expected.last < bound, place)
                    index += 1
                }
                #expect(region.nextOffset.rawValue == model.batches[index - 1].last + 1, place)
            }
            #expect(log.logEndOffset.rawValue == max(model.end, model.start), place)
            #expect(log.logStartOffset.rawValue == model.start, place)
        }
    }
}
