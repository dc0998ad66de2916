import MartletLogModel
import MartletRecordBatch
import MartletStorage
import NIOCore

/// Checks every batch of a partition's closed log: lengths, checksums, ascending offsets. A broker's start
/// checks only what lies behind the recovery point, so that start does not depend on the amount of data.
struct LogCheck {
    /// The first batch that is not whole.
    struct Finding {
        var offset: Offset
        var segment: String
        var position: Int64
        var detail: String
    }

    let disk: PosixDisk
    /// Folder of the partition.
    let folder: String
    /// End of the log as its opening found it; nothing beyond is looked at.
    let end: Offset

    /// Segment files in order of their base offset.
    func segments() throws -> [(base: Int64, path: String)] {
        try disk.list(folder).compactMap { name in
            guard let (base, kind) = LogFileName.parse(name), kind == LogFileName.log else { return nil }
            return (base, folder + "/" + name)
        }.sorted { $0.base < $1.base }
    }

    /// The first damage, or `nil` for a whole log.
    func run() throws -> Finding? {
        var next: Int64?
        for (base, path) in try segments() where base < end.rawValue {
            let file = try PositionedFile(path)
            var position: Int64 = 0
            var expected = max(next ?? base, base)
            while position < file.byteCount, expected < end.rawValue {
                do {
                    let header = try RecordBatchHeader(
                        reading: try file.read(at: position, RecordBatchHeader.byteCount))
                    guard header.baseOffset >= expected else {
                        return Finding(
                            offset: Offset(expected), segment: path, position: position,
                            detail: "offset \(header.baseOffset) where at least \(expected) belongs")
                    }
                    let total = header.totalByteCount
                    guard total <= SegmentDump.batchBytesLimit, position + Int64(total) <= file.byteCount
                    else {
                        return Finding(
                            offset: Offset(expected), segment: path, position: position,
                            detail: "a batch of \(total) bytes goes beyond the file's end")
                    }
                    _ = try RecordBatchValidator.checkHeader(
                        try file.read(at: position, total), limits: .stored)
                    expected = header.lastOffset + 1
                    position += Int64(total)
                } catch let error as RecordBatchError {
                    return Finding(
                        offset: Offset(expected), segment: path, position: position, detail: "\(error)")
                }
            }
            next = expected
        }
        return nil
    }

    /// Copies what the cut at `finding` removes into the quarantine folder of the data directory.
    func quarantine(_ finding: Finding, partition: TopicPartition, directory: String) throws -> Int {
        let target = "\(directory)/\(LogDirectory<PosixDisk>.quarantineName)/\(partition)"
        try disk.createDirectories(target)
        var copied = 0
        for (base, path) in try segments() where path >= finding.segment {
            let source = try PositionedFile(path)
            var position = path == finding.segment ? finding.position : 0
            let name = path == finding.segment ? finding.offset.rawValue : base
            let copy = try disk.open("\(target)/\(LogFileName.make(name, "bytes"))", .create)
            defer { copy.close() }
            try copy.truncate(to: 0)
            var written = 0
            while position < source.byteCount {
                let chunk = try source.read(at: position, 1 << 20)
                if chunk.readableBytes == 0 { break }
                try copy.write([chunk], at: written)
                written += chunk.readableBytes
                position += Int64(chunk.readableBytes)
            }
            try copy.sync()
            copied += written
        }
        try disk.syncDirectory(target)
        return copied
    }
}
