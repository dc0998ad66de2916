package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletRecordBatch
package import MartletStorage
package import NIOCore

/// Why the metadata log cannot be read or written. The broker does not start, or stops, on it.
package struct MetadataLogError: Error, CustomStringConvertible {
    package var description: String
}

/// The log `__cluster_metadata-0` and its snapshots, in Kafka's record framing: reading what is there, cutting
/// batches. Plain functions over the storage engine; the order of events is the shell's.
package enum MetadataLog {
    package static let partition = TopicPartition(TopicName.clusterMetadata, 0)
    /// Kafka's fixed id of the metadata topic (KIP-516): the UUID with the value 1.
    package static let topicID = UniversalID(high: 0, low: 1)
    /// Records per batch of a snapshot.
    private static let snapshotBatchRecordCount = 1000
    /// Bytes read at once on loading.
    private static let readByteCount = 1024 * 1024

    package struct Loaded {
        /// With the offset of each record.
        package var records: [(record: MetadataRecord, offset: Offset)] = []
        package var snapshotEnd: Offset?
    }

    /// Newest snapshot, if any, then the log behind it.
    package static func load(
        _ log: PartitionLog<AnyDisk>, disk: AnyDisk
    ) throws -> Loaded {
        var loaded = Loaded()
        if let snapshot = try newestSnapshot(in: log.folder, disk: disk) {
            loaded.snapshotEnd = snapshot.end
            for record in try records(in: snapshot.bytes) {
                // The snapshot covers everything below its end; its records count as of the last offset covered.
                loaded.records.append((record.record, Offset(snapshot.end.rawValue - 1)))
            }
        }
        var next = max(log.logStartOffset, loaded.snapshotEnd ?? log.logStartOffset)
        if let end = loaded.snapshotEnd, log.logStartOffset > end {
            throw MetadataLogError(
                description: "the metadata log starts at \(log.logStartOffset), beyond its newest snapshot at \(end)")
        }
        while next < log.logEndOffset {
            let region = try log.locate(
                from: next, upTo: log.logEndOffset, maxBytes: readByteCount, minOneBatch: true)
            guard region.byteCount > 0 else {
                throw MetadataLogError(description: "the metadata log has no batch at offset \(next)")
            }
            var bytes = ByteBuffer()
            _ = try region.read(into: &bytes, nonBlocking: false)
            for (record, offset) in try records(in: bytes) where offset >= next {
                loaded.records.append((record, offset))
            }
            next = region.nextOffset
        }
        return loaded
    }

    private static func records(in bytes: ByteBuffer) throws -> [(record: MetadataRecord, offset: Offset)] {
        var rest = bytes
        var result: [(record: MetadataRecord, offset: Offset)] = []
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else {
                throw MetadataLogError(description: "a batch of the metadata log is cut short")
            }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            guard !header.isControl else { continue }
            var iterator = try RecordIterator(batch)
            while let view = try iterator.next() {
                guard let value = view.value else { continue }
                result.append((try MetadataRecord(reading: value), view.offset))
            }
        }
        return result
    }

    /// One batch with these records, to be appended as a whole.
    package static func batch(_ records: [MetadataRecord], now: Timestamp) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        for record in records {
            try builder.append(key: nil, value: try record.encoded(), timestamp: now.rawValue)
        }
        return try builder.build(RecordBatchBuilder.Options())
    }

    // MARK: Snapshots

    /// `<end offset, 20 digits>-<epoch, 10 digits>.checkpoint`, as Kafka names them (KIP-630).
    package static func snapshotName(end: Offset, epoch: LeaderEpoch) -> String {
        pad(end.rawValue, 20) + "-" + pad(Int64(epoch.rawValue), 10) + ".checkpoint"
    }

    private static func pad(_ number: Int64, _ width: Int) -> String {
        let digits = String(number)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }

    private static func snapshotEnd(of name: String) -> Offset? {
        let suffix = ".checkpoint"
        guard name.hasSuffix(suffix) else { return nil }
        let parts = name.dropLast(suffix.count).split(separator: "-")
        guard parts.count == 2, parts[0].count == 20, parts[1].count == 10, let end = Int64(parts[0]) else { return nil }
        return Offset(end)
    }

    private static func newestSnapshot(
        in folder: String, disk: AnyDisk
    ) throws -> (end: Offset, bytes: ByteBuffer)? {
        let names: [String]
        do throws(DiskError) {
            names = try disk.list(folder)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
        let newest = names.compactMap { name in snapshotEnd(of: name).map { ($0, name) } }.max { $0.0 < $1.0 }
        guard let (end, name) = newest else { return nil }
        guard let bytes = try disk.readAll(folder + "/" + name, limit: Int(Int32.max)) else { return nil }
        return (end, bytes)
    }

    /// Encodes a snapshot: header control record, data, footer control record (KIP-630).
    package static func snapshot(_ records: [MetadataRecord], now: Timestamp, epoch: LeaderEpoch) throws -> ByteBuffer {
        var bytes = ByteBuffer()
        var offset: Int64 = 0
        func control(_ type: Int16, _ body: some KafkaMessage) throws {
            var key = ByteBuffer()
            key.writeInteger(Int16(0))
            key.writeInteger(type)
            var writer = ProtocolWriter()
            try body.encode(into: &writer, version: 0)
            var builder = RecordBatchBuilder()
            try builder.append(key: key, value: writer.buffer, timestamp: now.rawValue)
            var options = RecordBatchBuilder.Options()
            options.isControl = true
            options.baseOffset = offset
            options.partitionLeaderEpoch = epoch.rawValue
            bytes.writeImmutableBuffer(try builder.build(options))
            offset += 1
        }
        var header = SnapshotHeaderRecord()
        header.lastContainedLogTimestamp = now.rawValue
        try control(3, header)
        var index = 0
        while index < records.count {
            var builder = RecordBatchBuilder()
            let end = min(records.count, index + snapshotBatchRecordCount)
            for record in records[index..<end] {
                try builder.append(key: nil, value: try record.encoded(), timestamp: now.rawValue)
            }
            var options = RecordBatchBuilder.Options()
            options.baseOffset = offset
            options.partitionLeaderEpoch = epoch.rawValue
            bytes.writeImmutableBuffer(try builder.build(options))
            offset += Int64(end - index)
            index = end
        }
        try control(4, SnapshotFooterRecord())
        return bytes
    }

    /// Removes snapshots older than the one that ends at `newest`.
    package static func removeSnapshots(before newest: Offset, in folder: String, disk: AnyDisk) throws(DiskError) {
        for name in try disk.list(folder) {
            if let end = snapshotEnd(of: name), end < newest { try disk.remove(folder + "/" + name) }
        }
    }
}
