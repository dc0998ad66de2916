import Glibc
import MartletLogModel
import MartletRecordBatch
import MartletStorage
import NIOCore
import Testing

/// The real file system, in a folder of its own.
@Suite struct PosixDiskTests {
    private func withFolder(_ body: (String) throws -> Void) throws {
        var template = Array("/tmp/martlet-storage-XXXXXX".utf8CString)
        let made: String? = template.withUnsafeMutableBufferPointer { buffer in
            // SAFETY: mkdtemp writes within the NUL-terminated array it is given.
            buffer.baseAddress.flatMap { mkdtemp($0) }.map { String(cString: $0) }
        }
        let folder = try #require(made)
        defer { remove(folder) }
        try body(folder)
    }

    private func remove(_ folder: String) {
        let disk = PosixDisk()
        for name in (try? disk.list(folder)) ?? [] {
            let path = folder + "/" + name
            if (try? disk.status(path))?.isDirectory == true { remove(path) } else { try? disk.remove(path) }
        }
        try? disk.removeDirectory(folder)
    }

    private func directory(_ folder: String) throws -> LogDirectory<PosixDisk> {
        try LogDirectory.open(
            folder, disk: PosixDisk(), clusterID: "c", nodeID: BrokerID(0), newDirectoryID: UniversalID(high: 1, low: 1))
    }

    private func log(
        _ directory: LogDirectory<PosixDisk>, _ configuration: LogConfiguration
    ) throws -> PartitionLog<PosixDisk> {
        try PartitionLog.open(
            directory: directory, topicPartition: Fixture.partition, topicID: Fixture.topicID,
            configuration: configuration, now: Fixture.now)
    }

    @Test func `the parent of a path is where its name stands`() {
        let parents = ["/a/b": "/a", "/a": "/", "/": "/", "a": ".", "a/b": "a", "a/b/": "a", "/a/": "/", ".": "."]
        for (path, parent) in parents { #expect(parentPath(of: path) == parent, "\(path)") }
    }

    @Test func `batches survive closing and reopening, and unclean ends, on a real disk`() throws {
        try withFolder { folder in
            for round in 0..<4 as Range<Int64> {
                let directory = try directory(folder)
                #expect(directory.wasCleanShutdown == (round > 0 && round % 2 == 1))
                var configuration = LogConfiguration.small(segmentBytes: 200_000)
                configuration.preallocationThresholdBytes = 10_000
                configuration.preallocationStepBytes = 64 << 10
                let log = try log(directory, configuration)
                #expect(log.logEndOffset == Offset(round * 2000))
                for index in 0..<2000 {
                    var batch = Fixture.batch(bytes: 100, seed: UInt64(index))
                    _ = try log.stage(
                        &batch, header: RecordBatchHeader(reading: batch), leaderEpoch: .zero, now: Fixture.now)
                }
                // More buffers than one call takes, over more than one segment.
                try log.writeStaged()
                log.flushCompleted(try #require(log.takeFlush()).run())
                #expect(log.flushedEndOffset == Offset((round + 1) * 2000))
                var next = Offset.zero
                var bytes = ByteBuffer()
                while next < log.logEndOffset {
                    let region = try log.locate(from: next, upTo: log.logEndOffset, maxBytes: 50_000, minOneBatch: true)
                    #expect(region.file?.descriptor != nil)
                    bytes.clear()
                    #expect(try log.read(region, into: &bytes, nonBlocking: false) == .read)
                    next = region.nextOffset
                }
                #expect(try log.verify().findings.isEmpty)
                try log.close(clean: round % 2 == 0)
                try directory.close(clean: round % 2 == 0, brokerEpoch: 1)
            }
        }
    }

    @Test func `the lock of a directory keeps a second process's open out`() throws {
        try withFolder { folder in
            let first = try directory(folder)
            #expect(throws: StorageError.self) { try directory(folder) }
            try first.close(clean: false)
            try directory(folder).close(clean: false)
        }
    }

    @Test func `errors name operation, path and cause`() throws {
        let error = #expect(throws: DiskError.self) { try PosixDisk().open("/nonexistent/x", .read) }
        #expect(error?.kind == .notFound)
        #expect(error?.description == "open /nonexistent/x: No such file or directory")
        #expect(throws: DiskError.self) { try PosixDisk().list("/nonexistent") }
        #expect(throws: DiskError.self) { try PosixDisk().rename("/nonexistent/x", to: "/nonexistent/y") }
    }

    @Test func `cached reads answer from memory and stop at the end of the file`() throws {
        try withFolder { folder in
            let file = try PosixDisk().open(folder + "/f", .createNew)
            try file.write([ByteBuffer(string: "hello "), ByteBuffer(string: "world")], at: 0)
            var buffer = ByteBuffer()
            #expect(try file.readCached(into: &buffer, at: 6, count: 100) == 5)
            #expect(String(buffer: buffer) == "world")
            #expect(try file.readCached(into: &buffer, at: 11, count: 1) == 0)
            try file.allocate(at: 0, count: 1 << 20)
            #expect(try file.size() == 11)
            try file.sync()
            file.close()
            #expect(file.descriptor == nil)
            #expect(throws: DiskError.self) { try file.size() }
        }
    }
}
