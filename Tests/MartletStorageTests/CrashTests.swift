import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct CrashTests {
    /// Workloads per test; each is crashed after every operation.
    static let workloads: UInt64 = isLong ? 30 : 3
    /// First seed; every failure names its own. `MARTLET_SEED=n` looks elsewhere.
    static let base = environment("MARTLET_SEED").flatMap { UInt64($0) } ?? 0
    /// Images drawn per crash point beyond the two extremes.
    static let imagesPerPoint: UInt64 = isLong ? 4 : 1
    /// Crash after each operation, or (each workload elsewhere) after every so many of them.
    static let stride = isLong ? 1 : 4

    /// First broken promise over all crash points of a workload.
    static func enumerate(seed: UInt64, compacts: Bool, pretending: Bool = false) -> String? {
        var whole = CrashWorkload(seed: seed, compacts: compacts)
        let disk = SimulatedDisk()
        whole.run(on: disk)
        let total = disk.operationCount
        for point in Swift.stride(from: Int(seed) % stride, through: total, by: stride) {
            var workload = CrashWorkload(seed: seed, compacts: compacts)
            let disk = SimulatedDisk()
            disk.pretendToFlush(pretending)
            disk.stop(afterOperations: point)
            workload.run(on: disk)
            for image in 0..<(2 + imagesPerPoint) {
                let crashSeed = image < 2 ? image : seed &* 1_000_003 &+ UInt64(point) &* 101 &+ image
                let after = disk.crashed(seed: crashSeed)
                if let problem = workload.problem(on: after) {
                    return "workload \(seed) crash after operation \(point) of \(total) image \(crashSeed): \(problem)\n"
                        + disk.trace.suffix(12).joined(separator: "\n")
                }
            }
        }
        return nil
    }

    @Test(arguments: CrashTests.base..<(CrashTests.base + CrashTests.workloads))
    func `after a power cut at any point every acknowledged batch is there and nothing invented`(
        seed: UInt64
    ) {
        let problem = Self.enumerate(seed: seed, compacts: false)
        #expect(problem == nil, "\(problem ?? "")")
    }

    @Test(arguments: (CrashTests.base + 100)..<(CrashTests.base + 100 + CrashTests.workloads))
    func `after a power cut during compaction the newest value of every key is there`(seed: UInt64) {
        let problem = Self.enumerate(seed: seed, compacts: true)
        #expect(problem == nil, "\(problem ?? "")")
    }

    /// What a killed process left is in memory alone; what the next one builds on it must not fall with it.
    @Test(arguments: CrashTests.base..<(CrashTests.base + CrashTests.workloads))
    func `a kill at any point, appends of the next process, a power cut: all that was acknowledged is there`(
        seed: UInt64
    ) {
        for compacts in [false, true] {
            let whole = SimulatedDisk()
            var workload = CrashWorkload(seed: seed + 500, compacts: compacts)
            workload.run(on: whole)
            let total = whole.operationCount
            for point in Swift.stride(from: Int(seed) % Self.stride, through: total, by: Self.stride) {
                var workload = CrashWorkload(seed: seed + 500, compacts: compacts)
                let disk = SimulatedDisk()
                disk.stop(afterOperations: point)
                workload.run(on: disk)
                var problem = workload.goOn(on: disk)
                var image: UInt64 = 0
                while problem == nil, image < 2 + Self.imagesPerPoint {
                    let crashSeed = image < 2 ? image : seed &* 1_000_003 &+ UInt64(point) &* 101 &+ image
                    problem = workload.problem(on: disk.crashed(seed: crashSeed))
                    if problem != nil { problem?.append(" (image \(crashSeed))") }
                    image += 1
                }
                #expect(problem == nil, "workload \(seed + 500) killed after operation \(point) of \(total): \(problem ?? "")")
                if problem != nil { return }
            }
        }
    }

    @Test func `a second crash during recovery changes nothing`() {
        for seed in (Self.base + 200)..<(Self.base + 200 + Self.workloads) {
            var generator = SplitMix64(seed: seed)
            var whole = CrashWorkload(seed: seed)
            let first = SimulatedDisk()
            whole.run(on: first)
            let total = first.operationCount
            for _ in 0..<(isLong ? 400 : 40) {
                let point = Int.random(in: 0...total, using: &generator)
                var workload = CrashWorkload(seed: seed)
                let disk = SimulatedDisk()
                disk.stop(afterOperations: point)
                workload.run(on: disk)
                let firstSeed = generator.next() % 1000
                let image = disk.crashed(seed: firstSeed)
                let stop = Int.random(in: 0..<60, using: &generator)
                image.stop(afterOperations: stop)
                // The recovery that dies half-way.
                _ = try? Fixture.log(Fixture.directory(image), workload.configuration)
                let secondSeed = generator.next() % 1000
                let problem = workload.problem(on: image.crashed(seed: secondSeed))
                #expect(
                    problem == nil,
                    "workload \(seed) point \(point) images \(firstSeed), \(secondSeed) stop \(stop): \(problem ?? "")")
                if problem != nil { return }
            }
        }
    }

    @Test func `the harness notices a disk that does not flush`() {
        var blind: [UInt64] = []
        for seed in 0..<3 as Range<UInt64> where Self.enumerate(seed: seed, compacts: false, pretending: true) == nil {
            blind.append(seed)
        }
        #expect(blind.count < 3, "no seed noticed that nothing was flushed")
    }

    @Test func `a flipped bit in a log is cut off as a tail, reported as damage or found by verify`() throws {
        for seed in (Self.base + 300)..<(Self.base + 300 + (isLong ? 2000 : 120)) {
            var generator = SplitMix64(seed: seed)
            var workload = CrashWorkload(seed: Self.base + seed % 7)
            let disk = SimulatedDisk()
            workload.run(on: disk)
            let image = disk.crashed(seed: 1)
            let logs = image.files.filter { $0.hasSuffix(".log") && (image.content($0)?.count ?? 0) > 0 }
            guard let path = logs.randomElement(using: &generator), let size = image.content(path)?.count else {
                continue
            }
            let byte = Int.random(in: 0..<size, using: &generator)
            let bit = Int.random(in: 0..<8, using: &generator)
            image.flip(path, byte: byte, bit: bit)
            let place = "seed \(seed): \(path) byte \(byte) bit \(bit)"

            let directory = try Fixture.directory(image)
            let log: SimulatedLog
            do {
                log = try Fixture.log(directory, workload.configuration)
            } catch {
                continue
            }
            if log.damage != nil || log.recovery.isNoteworthy { continue }
            if try log.verify().findings.isEmpty == false { continue }
            // Not reported: then the flip must be in bytes below the log start or change nothing.
            for acknowledged in workload.promises.acknowledged {
                let header = try RecordBatchHeader(reading: acknowledged.bytes)
                if header.lastOffset < log.logStartOffset.rawValue { continue }
                guard header.lastOffset < log.logEndOffset.rawValue else {
                    Issue.record("\(place): offset \(header.baseOffset) is gone, the log ends at \(log.logEndOffset)")
                    break
                }
                let region = try log.locate(
                    from: max(Offset(header.baseOffset), log.logStartOffset), upTo: log.logEndOffset, maxBytes: 1,
                    minOneBatch: true)
                var bytes = ByteBuffer()
                _ = try log.read(region, into: &bytes, nonBlocking: false)
                #expect(bytes == acknowledged.bytes, "\(place): a changed batch went unnoticed")
            }
        }
    }
}
