import MartletClient
import MartletLogModel
import MartletRecordBatch
import NIOCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// A file read by position; its end is taken when it is opened, so a growing segment dumps as it was then.
final class PositionedFile {
    let path: String
    let byteCount: Int64
    private let descriptor: Int32

    init(_ path: String) throws {
        self.path = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CommandFailure("\(path) cannot be opened: \(SystemCall.text(errno))", exitCode: .file)
        }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            close(descriptor)
            throw CommandFailure("\(path) is no regular file", exitCode: .file)
        }
        byteCount = Int64(status.st_size)
    }

    deinit { close(descriptor) }

    /// Up to `count` bytes at `position`, fewer at the end.
    func read(at position: Int64, _ count: Int) throws -> ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: count)
        while buffer.readableBytes < count {
            let wanted = count - buffer.readableBytes
            let place = position + Int64(buffer.readableBytes)
            var result = 0
            var code: Int32 = 0
            buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: wanted) { bytes in
                result = pread(descriptor, bytes.baseAddress!, wanted, off_t(place))
                code = errno
                return max(0, result)
            }
            if result < 0, code == EINTR { continue }
            guard result >= 0 else {
                throw CommandFailure("\(path) cannot be read: \(SystemCall.text(code))", exitCode: .file)
            }
            if result == 0 { break }
        }
        return buffer
    }
}

/// Prints the batches of a segment file. Layout: record batches v2 one after the other (Protocol/Formats).
struct SegmentDump {
    let path: String
    let showsRecords: Bool
    let format: RecordFormat
    let json: Bool

    /// Largest batch that is read: above it a length field is taken for damage.
    static let batchBytesLimit = 256 * 1024 * 1024

    func run(showsRecords: Bool) throws {
        let file = try PositionedFile(path)
        var position: Int64 = 0
        var batchCount = 0
        var recordCount = 0
        while position < file.byteCount {
            let headerBytes = try file.read(at: position, RecordBatchHeader.byteCount)
            if isZero(headerBytes), try isZeroToEnd(file, position) {
                try tail(
                    "\(Decimals.bytes(file.byteCount - position)) preallocated and not yet used from \(position) on"
                )
                break
            }
            let header = try located(position) { try RecordBatchHeader(reading: headerBytes) }
            let total = header.totalByteCount
            guard total >= RecordBatchHeader.byteCount, total <= Self.batchBytesLimit,
                position + Int64(total) <= file.byteCount
            else {
                throw CommandFailure(
                    "\(path): position \(position): the batch of \(total) bytes goes beyond the end of the file at \(file.byteCount)",
                    remedy: "a crash leaves such a torn tail; the broker cuts it on start")
            }
            let batch = try file.read(at: position, total)
            _ = try located(position) {
                try RecordBatchValidator.checkHeader(batch, limits: .stored)
            }
            try printBatch(header, position)
            if showsRecords { try printRecords(batch, position) }
            batchCount += 1
            recordCount += Int(header.recordCount)
            position += Int64(total)
        }
        try tail("\(batchCount) batches, \(recordCount) records, \(position) bytes")
    }

    private func tail(_ text: String) throws {
        if json { Console.note("\(path): \(text)") } else { try Console.print(text) }
    }

    private func located<Result>(_ position: Int64, _ body: () throws -> Result) throws -> Result {
        do { return try body() } catch let error as RecordBatchError {
            throw CommandFailure(
                "\(path): position \(position): \(error)",
                remedy:
                    "if valid batches follow, the file is damaged: repair it from a replica, or with `martlet log repair`"
            )
        }
    }

    private func isZero(_ bytes: ByteBuffer) -> Bool { bytes.readableBytesView.allSatisfy { $0 == 0 } }

    private func isZeroToEnd(_ file: PositionedFile, _ start: Int64) throws -> Bool {
        var position = start
        while position < file.byteCount {
            let bytes = try file.read(at: position, 1 << 20)
            if !isZero(bytes) { return false }
            position += Int64(max(1, bytes.readableBytes))
        }
        return true
    }

    private func printBatch(_ header: RecordBatchHeader, _ position: Int64) throws {
        if json {
            return try Console.print(
                JSONValue.object([
                    ("position", .integer(position)), ("bytes", .integer(Int64(header.totalByteCount))),
                    ("baseOffset", .integer(header.baseOffset)), ("lastOffset", .integer(header.lastOffset)),
                    ("records", .integer(Int64(header.recordCount))),
                    ("leaderEpoch", .integer(Int64(header.partitionLeaderEpoch))),
                    ("codec", .string(header.codec.name)), ("crc", .integer(Int64(header.crc))),
                    ("baseTimestamp", .integer(header.baseTimestamp)),
                    ("maxTimestamp", .integer(header.maxTimestamp)),
                    ("logAppendTime", .bool(header.timestampType == .logAppendTime)),
                    ("producerID", .integer(header.producerID)),
                    ("producerEpoch", .integer(Int64(header.producerEpoch))),
                    ("baseSequence", .integer(Int64(header.baseSequence))),
                    ("transactional", .bool(header.isTransactional)), ("control", .bool(header.isControl)),
                ]).line)
        }
        var text =
            "\(position)  offsets \(header.baseOffset)-\(header.lastOffset)  records \(header.recordCount)  "
        text +=
            "bytes \(header.totalByteCount)  epoch \(header.partitionLeaderEpoch)  codec \(header.codec.name)  "
        text +=
            "max time \(CivilTime.text(milliseconds: header.maxTimestamp))  crc \(String(header.crc, radix: 16))"
        if header.hasProducerID {
            text += "  producer \(header.producerID)/\(header.producerEpoch) sequence \(header.baseSequence)"
        }
        if header.isTransactional { text += "  transactional" }
        if header.isControl { text += "  control" }
        try Console.print(text)
    }

    private func printRecords(_ batch: ByteBuffer, _ position: Int64) throws {
        var output = ByteBuffer()
        var iterator = try located(position) { try RecordIterator(batch) }
        while let record = try located(position, { try iterator.next() }) {
            let fields = RecordFormat.Fields(
                topic: "", partition: 0, offset: record.offset.rawValue, timestamp: record.timestamp.rawValue,
                key: record.key, value: record.value,
                headers: record.headers.map { MartletClient.RecordHeader($0.key, $0.value) })
            if json {
                output.writeString(RecordFormat.json(fields).line + "\n")
            } else {
                format.write(fields, to: &output)
            }
        }
        try Console.write(output)
    }
}
