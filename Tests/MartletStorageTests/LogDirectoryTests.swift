import MartletLogModel
import MartletRecordBatch
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

@Suite struct LogDirectoryTests {
    private func open(
        _ disk: SimulatedDisk, cluster: String? = "cluster", node: Int32 = 1
    ) throws -> SimulatedDirectory {
        try SimulatedDirectory.open(
            Fixture.root, disk: disk, clusterID: cluster, nodeID: BrokerID(node),
            newDirectoryID: UniversalID(high: 1, low: 2))
    }

    @Test func `a directory has one user at a time`() throws {
        let disk = SimulatedDisk()
        let first = try open(disk)
        #expect(throws: StorageError.self) { try open(disk) }
        try first.close(clean: true)
        _ = try open(disk)
    }

    @Test func `another cluster's or node's directory is refused with the reason`() throws {
        let disk = SimulatedDisk()
        try open(disk).close(clean: true)
        let error = #expect(throws: StorageError.self) { try open(disk, cluster: "other") }
        #expect(error?.description.contains("belongs to cluster cluster, not other") == true)
        let image = disk.crashed(seed: 1)
        let second = #expect(throws: StorageError.self) { try open(image, node: 2) }
        #expect(second?.description.contains("node 1, not 2") == true)
    }

    @Test func `the clean-shutdown mark tells the broker epoch and counts once`() throws {
        let disk = SimulatedDisk()
        let first = try open(disk)
        #expect(!first.wasCleanShutdown)
        try first.close(clean: true, brokerEpoch: 77)
        #expect(disk.content("/data/.kafka_cleanshutdown") == Array("{\"version\":0,\"brokerEpoch\":77}".utf8))
        let second = try open(disk)
        #expect(second.wasCleanShutdown)
        #expect(second.previousBrokerEpoch == 77)
        #expect(try !open(disk.crashed(seed: 0)).wasCleanShutdown)
    }

    @Test func `a log that was let go uncleanly is checked when it is opened again in the same run`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        try Fixture.close(log, directory)
        let again = try Fixture.directory(disk)
        let first = try Fixture.log(again)
        #expect(!first.recovery.wasChecked)
        try Fixture.append(first, Fixture.batch())
        try first.close(clean: true)
        let second = try Fixture.log(again)
        #expect(!second.recovery.wasChecked)
        try Fixture.append(second, Fixture.batch(), flush: false)
        try second.close(clean: false)
        let third = try Fixture.log(again)
        #expect(third.recovery.wasChecked)
        #expect(third.logEndOffset == Offset(3) && third.flushedEndOffset == Offset(3))
    }

    @Test func `a partition with durable offsets whose folder is gone is offline, not empty`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        try Fixture.close(log, directory)
        for path in disk.files where path.contains("orders-0") { try disk.remove(path) }
        try disk.removeDirectory("/data/orders-0")
        let again = try Fixture.directory(disk)
        #expect(again.partitions == [Fixture.partition])
        let error = #expect(throws: StorageError.self) { try Fixture.log(again) }
        #expect(error?.description.contains("missing") == true)
    }

    @Test func `a folder without its segments is offline, not empty`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        try Fixture.close(log, directory)
        try disk.remove(Fixture.logPath(0))
        #expect(throws: StorageError.self) { try Fixture.log(Fixture.directory(disk)) }
    }

    @Test func `a log cut below its recovery point is damaged, not shorter`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        for index in 0..<5 { try Fixture.append(log, Fixture.batch(seed: UInt64(index))) }
        try Fixture.close(log, directory)
        let content = try #require(disk.content(Fixture.logPath(0)))
        let header = try RecordBatchHeader(reading: ByteBuffer(bytes: content))
        disk.setContent(Fixture.logPath(0), Array(content[..<(header.totalByteCount * 3)]))
        let again = try Fixture.log(Fixture.directory(disk))
        #expect(again.damage?.offset == Offset(3))
        #expect(try Fixture.readAll(again).count == 3)
    }

    @Test func `a folder of a former topic is moved aside and the new topic starts empty`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        try Fixture.close(log, directory)
        let again = try Fixture.directory(disk)
        #expect(disk.content("/data/orders-0/partition.metadata") == Array("version: 0\ntopic_id: \(Fixture.topicID)\n".utf8))
        let fresh = try SimulatedLog.open(
            directory: again, topicPartition: Fixture.partition, topicID: UniversalID(high: 1, low: 1),
            configuration: LogConfiguration(), now: Fixture.now)
        #expect(fresh.recovery.movedAside == "/data/orders-0.stray0")
        #expect(fresh.logEndOffset == .zero && fresh.logStartOffset == .zero)
        try Fixture.append(fresh, Fixture.batch())
        #expect(disk.files.contains("/data/orders-0.stray0/00000000000000000000.log"))
        try Fixture.close(fresh, again)
        #expect(try Fixture.directory(disk).unknownNames == ["orders-0.stray0"])
    }

    @Test func `unknown folders are reported and left alone`() throws {
        let disk = SimulatedDisk()
        try open(disk).close(clean: true)
        try disk.createDirectory("/data/what-is-this")
        try disk.createDirectory("/data/topic-01")
        let again = try open(disk)
        #expect(again.unknownNames == ["topic-01", "what-is-this"])
        try again.close(clean: true)
        #expect(try disk.list("/data").contains("what-is-this"))
    }

    @Test func `a deleted partition's name is free at once and its files go later`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch())
        try log.close(clean: true)
        let removal = try directory.deletePartition(Fixture.partition, uniqueSuffix: UniversalID(high: 3, low: 4))
        let fresh = try Fixture.log(directory)
        #expect(fresh.logEndOffset == .zero)
        try Fixture.append(fresh, Fixture.batch())
        // The process dies before the removal: the next start finishes it.
        let image = disk.crashed(seed: 0)
        try #require(removal).run()
        #expect(!disk.files.contains { $0.contains("-delete") })
        let again = try Fixture.directory(image)
        let unfinished = again.unfinishedDeletions()
        #expect(unfinished.count == 1)
        for work in unfinished { try work.run() }
        #expect(!image.files.contains { $0.contains("-delete") })
        #expect(try Fixture.log(again).logEndOffset == Offset(1))
    }

    @Test(arguments: [true, false])
    func `a log that outlives its partition harms neither the directory nor a new one of the name`(
        recreated: Bool
    ) throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small())
        for index in 0..<20 {
            let producer = (id: Int64(4), epoch: Int16(0), sequence: Int32(index))
            try Fixture.append(log, Fixture.batch(bytes: 100, producer: producer), flush: index % 2 == 0)
        }
        let flush = try #require(log.takeFlush())
        if recreated { log.flushCompleted(flush.run()) }
        _ = try directory.deletePartition(Fixture.partition, uniqueSuffix: UniversalID(high: 3, low: 4))
        if recreated {
            let fresh = try SimulatedLog.open(
                directory: directory, topicPartition: Fixture.partition, topicID: UniversalID(high: 8, low: 8),
                configuration: .small(), now: Fixture.now)
            try Fixture.append(fresh, Fixture.batch())
        }
        let files = disk.files
        if !recreated { log.flushCompleted(flush.run()) }
        try log.close(clean: true)
        #expect(directory.state == .ok)
        #expect(disk.files == files)
    }

    @Test func `checkpoint files have Kafka's text`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch(count: 4))
        log.recordHighWatermark(Offset(3))
        try #require(try log.deleteRecords(before: Offset(2), highWatermark: Offset(3))).run()
        func text(_ name: String) -> String? { disk.content("/data/" + name).map { String(decoding: $0, as: UTF8.self) } }
        func checked(_ rows: String) -> String { rows + "##crc32c 0 \(crc32c(ByteBuffer(string: rows)))\n" }
        #expect(text("recovery-point-offset-checkpoint") == checked("0\n2\norders 0 4\n"))
        #expect(text("log-start-offset-checkpoint") == checked("0\n2\norders 0 2\n"))
        #expect(text("replication-offset-checkpoint") == checked("0\n2\norders 0 3\n"))
        #expect(text("cleaner-offset-checkpoint") == checked("0\n1\n"))
        #expect(text("orders-0/leader-epoch-checkpoint") == "0\n1\n0 0\n")
    }

    @Test(arguments: ["", "1\n0\n", "0\n2\na 0 1\n", "0\n1\na 0 -1\n", "0\n1\na b 1\n", "0\n1\na 0\n", "0\n1\n.. 0 1\n"])
    func `a damaged checkpoint file is refused, not guessed at`(text: String) throws {
        #expect(OffsetCheckpoint.decode(ByteBuffer(string: text)) == nil)
        let disk = SimulatedDisk()
        try open(disk).close(clean: true)
        disk.setContent("/data/recovery-point-offset-checkpoint", Array(text.utf8))
        #expect(throws: StorageError.self) { try open(disk) }
    }

    @Test func `no flipped bit of a checkpoint file goes unnoticed`() throws {
        let rows = [(TopicPartition("orders", 0), Offset(1042)), (TopicPartition("orders", 11), Offset(90))]
        let whole = OffsetCheckpoint.encode(rows)
        #expect(OffsetCheckpoint.decode(whole) == Dictionary(uniqueKeysWithValues: rows))
        for bit in 0..<whole.readableBytes * 8 {
            var bytes = Array(whole.readableBytesView)
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            let offsets = OffsetCheckpoint.decode(ByteBuffer(bytes: bytes))
            #expect(offsets == nil, "bit \(bit): \(String(decoding: bytes, as: UTF8.self))")
        }
    }

    @Test func `checkpoint files as Kafka writes them are read`() throws {
        #expect(OffsetCheckpoint.decode(ByteBuffer(string: "0\n1\norders 3 7\n")) == [TopicPartition("orders", 3): Offset(7)])
        #expect(OffsetCheckpoint.decode(ByteBuffer(string: "0\n0\n")) == [:])
    }

    @Test func `a log start with a flipped digit is refused and no record is lost by it`() throws {
        let (disk, _) = try diskWithRows()
        let path = "/data/" + OffsetCheckpoint.logStart
        let content = try #require(disk.content(path))
        let flipped = String(decoding: content, as: UTF8.self).replacing("orders 0 12\n", with: "orders 0 16\n")
        #expect(Array(flipped.utf8) != content)
        let image = disk.crashed(seed: 1)
        image.setContent(path, Array(flipped.utf8))
        let files = image.files
        let error = #expect(throws: StorageError.self) { try Fixture.directory(image) }
        #expect(error?.description.contains("log-start-offset-checkpoint is damaged") == true)
        #expect(image.files.filter { $0.hasSuffix(".log") } == files.filter { $0.hasSuffix(".log") })
    }

    @Test(arguments: [true, false])
    func `removing the log starts, as the error advises, leaves every log usable`(clean: Bool) throws {
        let (source, directory) = try diskWithRows()
        if clean {
            try Fixture.log(directory, .small()).close(clean: true)
            try directory.close(clean: true)
        }
        let disk = source.crashed(seed: 1)
        try disk.remove("/data/" + OffsetCheckpoint.logStart)
        // A run that writes the file anew without opening the log.
        try Fixture.directory(disk).writeCheckpoints()
        let log = try Fixture.log(Fixture.directory(disk.crashed(seed: 1)), .small())
        #expect(log.damage == nil)
        #expect(log.logStartOffset > .zero && log.logStartOffset <= Offset(12) && log.logEndOffset == Offset(20))
        #expect(try Fixture.readAll(log).count == Int(20 - log.logStartOffset.rawValue))
    }

    @Test func `removing the compacted ends leaves logs with compaction's gaps usable`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        var configuration = LogConfiguration.small()
        configuration.compacts = true
        configuration.minimumCleanableRatio = 0
        let log = try Fixture.log(directory, configuration)
        for index in 0..<20 {
            try Fixture.append(log, Fixture.batch(bytes: 200, seed: UInt64(index), key: "key"))
        }
        let plan = try #require(try log.planCompaction(now: Fixture.now, ceiling: Offset(20)))
        try log.installCompaction(try plan.run(), now: Fixture.now)
        try Fixture.flush(log)
        let left = try Fixture.offsets(Fixture.readAll(log))
        #expect(left.count < 20)
        try directory.writeCheckpoints()
        let image = disk.crashed(seed: 1)
        try image.remove("/data/" + OffsetCheckpoint.compactedEnd)
        let again = try Fixture.log(Fixture.directory(image), configuration)
        #expect(again.damage == nil)
        #expect(try Fixture.offsets(Fixture.readAll(again)) == left)
    }

    @Test(arguments: [true, false])
    func `a log start beyond the log's end hides and deletes nothing`(clean: Bool) throws {
        let (disk, directory) = try diskWithRows()
        if clean {
            try Fixture.log(directory, .small()).close(clean: true)
            try directory.close(clean: true)
        }
        let image = disk.crashed(seed: 1)
        image.setContent("/data/" + OffsetCheckpoint.logStart, Array("0\n1\norders 0 90\n".utf8))
        let logs = image.files.filter { $0.hasSuffix(".log") }
        let again = try Fixture.log(Fixture.directory(image), .small())
        #expect(again.damage?.detail.contains("log-start-offset-checkpoint") == true)
        #expect(image.files.filter { $0.hasSuffix(".log") } == logs)
        #expect(throws: AppendError.self) { try Fixture.append(again, Fixture.batch()) }
        try again.repair()
        #expect(again.logStartOffset <= Offset(12) && again.logEndOffset == Offset(20))
        try Fixture.append(again, Fixture.batch(bytes: 100))
        let last = try Fixture.log(Fixture.directory(image.crashed(seed: 1)), .small())
        #expect(last.damage == nil && last.logEndOffset == Offset(21))
        #expect(last.logStartOffset == again.logStartOffset)
    }

    @Test func `partition folder names are parsed strictly`() {
        #expect(SimulatedDirectory.partition(of: "a-b-3") == TopicPartition("a-b", 3))
        for name in ["a", "-1", "a-", "a-x", "a-01", "a--1", "..-1", "a-99999999999", "a b-1"] {
            #expect(SimulatedDirectory.partition(of: name) == nil || name == "a--1", "\(name)")
        }
    }

    @Test func `segment file names are parsed strictly`() {
        #expect(LogFileName.make(42, "log") == "00000000000000000042.log")
        let parsed = LogFileName.parse("00000000000000000042.log")
        #expect(parsed?.offset == 42 && parsed?.kind == "log")
        for name in ["42.log", "0000000000000000004x.log", "99999999999999999999.log", "00000000000000000042", ""] {
            #expect(LogFileName.parse(name) == nil)
        }
    }

    @Test func `a clean stop vouches for no log that nobody opened since the crash`() throws {
        let disk = SimulatedDisk()
        let log = try Fixture.log(Fixture.directory(disk))
        for index in 0..<3 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index)), flush: index < 2) }
        // The power cut tore the last batch: header there, body not.
        let image = disk.crashed(seed: 1)
        let size = try #require(image.content(Fixture.logPath(0))?.count)
        image.flip(Fixture.logPath(0), byte: size - 10, bit: 3)
        // A run that does not use the partition.
        try Fixture.directory(image).close(clean: true)
        let again = try Fixture.log(Fixture.directory(image))
        #expect(again.recovery.wasChecked)
        #expect(again.logEndOffset == Offset(2))
    }

    @Test func `a log that was not closed cleanly leaves no clean-shutdown mark`() throws {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory)
        try Fixture.append(log, Fixture.batch(), flush: false)
        try log.close(clean: false)
        try directory.close(clean: true)
        #expect(try !Fixture.directory(disk).wasCleanShutdown)
    }

    /// A partition with 20 durable offsets, and the checkpoint rows that say so.
    private func diskWithRows(partition: TopicPartition = Fixture.partition) throws -> (SimulatedDisk, SimulatedDirectory) {
        let disk = SimulatedDisk()
        let directory = try Fixture.directory(disk)
        let log = try Fixture.log(directory, .small(), partition: partition)
        for index in 0..<20 { try Fixture.append(log, Fixture.batch(bytes: 100, seed: UInt64(index))) }
        try #require(try log.deleteRecords(before: Offset(12), highWatermark: Offset(20))).run()
        try log.adoptLogStart(now: Fixture.now)
        try directory.writeCheckpoints()
        try log.close(clean: false)
        return (disk, directory)
    }

    @Test(arguments: ["orders", String(repeating: "t", count: TopicName.lengthLimit)])
    func `a new partition is not measured by the rows of a deleted one of its name`(topic: String) throws {
        let partition = TopicPartition(topic, 0)
        for appends in 0..<3 {
            let (disk, directory) = try diskWithRows(partition: partition)
            let removal = try directory.deletePartition(partition, uniqueSuffix: UniversalID(high: 3, low: 4))
            let fresh = try SimulatedLog.open(
                directory: directory, topicPartition: partition, topicID: UniversalID(high: 8, low: 8),
                configuration: .small(), now: Fixture.now)
            for _ in 0..<appends { try Fixture.append(fresh, Fixture.batch()) }
            for seed in [1, 5, 6, 7] as [UInt64] {
                // The process or the machine dies before the next checkpoint.
                let image = disk.crashed(seed: seed)
                if image.files.contains(where: { $0.hasPrefix("/data/\(partition)/") && $0.hasSuffix(".log") }) == (appends > 0) {
                    let directory = try Fixture.directory(image)
                    let again = try SimulatedLog.open(
                        directory: directory, topicPartition: partition, topicID: UniversalID(high: 8, low: 8),
                        configuration: .small(), now: Fixture.now)
                    #expect(again.damage == nil, "\(appends) batches, image \(seed)")
                    #expect(again.logStartOffset == .zero && again.logEndOffset == Offset(Int64(appends)))
                    for work in directory.unfinishedDeletions() { try work.run() }
                    #expect(!image.files.contains { $0.contains("-delete") })
                }
            }
            // Once the removal has begun to unlink files the rows are gone.
            try #require(removal).run()
            #expect(!disk.files.contains { $0.contains("-delete") })
            let rows = try #require(disk.content("/data/" + OffsetCheckpoint.logStart))
            #expect(!String(decoding: rows, as: UTF8.self).contains("\(topic) 0 12"))
            #expect(try SimulatedLog.open(
                directory: Fixture.directory(disk.crashed(seed: 1)), topicPartition: partition,
                topicID: UniversalID(high: 8, low: 8), configuration: .small(), now: Fixture.now
            ).logEndOffset == Offset(Int64(appends)))
        }
    }

    @Test func `a crash while a former topic's folder is moved aside leaves the new topic usable`() throws {
        let (source, _) = try diskWithRows()
        let other = UniversalID(high: 1, low: 1)
        for stop in 0..<40 {
            let disk = source.crashed(seed: 1)
            disk.stop(afterOperations: stop)
            _ = try? SimulatedLog.open(
                directory: Fixture.directory(disk), topicPartition: Fixture.partition, topicID: other,
                configuration: .small(), now: Fixture.now)
            for seed in 0..<4 as Range<UInt64> {
                let fresh = try SimulatedLog.open(
                    directory: Fixture.directory(disk.crashed(seed: seed)), topicPartition: Fixture.partition,
                    topicID: other, configuration: .small(), now: Fixture.now)
                #expect(fresh.logStartOffset == .zero && fresh.logEndOffset == .zero, "stop \(stop) image \(seed)")
            }
        }
    }

    @Test func `a folder name that leaves no room for a suffix is cut, not refused`() throws {
        let partition = TopicPartition(String(repeating: "t", count: TopicName.lengthLimit), 0)
        let (disk, directory) = try diskWithRows(partition: partition)
        _ = try directory.deletePartition(partition, uniqueSuffix: UniversalID(high: 3, low: 4))
        let names = try disk.list("/data")
        #expect(names.allSatisfy { $0.utf8.count <= 255 })
        #expect(names.contains { $0.hasSuffix("-delete") })
        let (second, again) = try diskWithRows(partition: partition)
        let fresh = try SimulatedLog.open(
            directory: again, topicPartition: partition, topicID: UniversalID(high: 1, low: 1),
            configuration: .small(), now: Fixture.now)
        #expect(fresh.recovery.movedAside?.hasSuffix(".stray0") == true)
        #expect(try second.list("/data").allSatisfy { $0.utf8.count <= 255 })
    }

    @Test(arguments: [DiskError.Kind.denied, .unsupported, .readOnly])
    func `a directory opens in a parent that cannot be flushed`(kind: DiskError.Kind) throws {
        let disk = SimulatedDisk()
        try Fixture.directory(disk).close(clean: true, brokerEpoch: 1)
        disk.fail(.syncDirectory, kind)
        try Fixture.directory(disk).close(clean: true, brokerEpoch: 1)
        // A medium that fails is another matter, and so is a parent in which the directory has just been made.
        disk.fail(.syncDirectory, .inputOutput)
        #expect(throws: StorageError.self) { try Fixture.directory(disk) }
        let empty = SimulatedDisk()
        empty.fail(.syncDirectory, kind, count: 2)
        #expect(throws: StorageError.self) { try Fixture.directory(empty) }
    }
}
