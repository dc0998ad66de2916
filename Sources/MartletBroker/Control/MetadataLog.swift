package import MartletKafkaProtocol
package import MartletLogModel
package import MartletMetadataQuorum
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
        package var snapshot: LogPosition?
        /// What the snapshot says of the voters; `nil` for those of before the quorum.
        package var snapshotMembership: QuorumMembership?
        /// Control records of the log behind the snapshot.
        package var controlBatches: [RecoveredQuorum.ControlBatchAt] = []
    }

    /// What a snapshot holds.
    struct Snapshot: Sendable {
        var records: [MetadataRecord] = []
        /// `nil` for those of before the quorum.
        var membership: QuorumMembership?
    }

    /// Of a snapshot that is still being fetched.
    static let partSuffix = ".part"

    /// The bytes of a snapshot; checksums, header and footer are checked.
    static func read(snapshot bytes: ByteBuffer, end: Offset) throws -> Snapshot {
        let batches = try ControlBatch.split(bytes)
        guard batches.last?.controlRecords == [.snapshotFooter] else {
            throw MetadataLogError(description: "the metadata snapshot at \(end) is cut short")
        }
        var snapshot = Snapshot()
        for batch in batches {
            snapshot.records += try records(in: batch).map(\.record)
            snapshot.membership = membership(snapshot.membership, batch.controlRecords)
        }
        return snapshot
    }

    /// Newest snapshot, if any, then the log behind it.
    package static func load(
        _ log: PartitionLog<AnyDisk>, disk: AnyDisk
    ) throws -> Loaded {
        var loaded = Loaded()
        if let snapshot = try newestSnapshot(in: log.folder, disk: disk) {
            loaded.snapshot = snapshot.id
            let found: Snapshot
            do {
                found = try read(snapshot: snapshot.bytes, end: snapshot.id.offset)
            } catch {
                throw MetadataLogError(description: "\(error) in \(log.folder); restore the file")
            }
            // The snapshot covers everything below its end; its records count as of the last offset covered.
            let offset = Offset(snapshot.id.offset.rawValue - 1)
            loaded.records = found.records.map { ($0, offset) }
            loaded.snapshotMembership = found.membership
        }
        let next = max(log.logStartOffset, loaded.snapshot?.offset ?? log.logStartOffset)
        if let end = loaded.snapshot?.offset, log.logStartOffset > end {
            throw MetadataLogError(
                description: "the metadata log starts at \(log.logStartOffset), beyond its newest snapshot at \(end)")
        }
        try forEachBatch(in: log, from: next, upTo: log.logEndOffset) { batch in
            loaded.records += try records(in: batch).filter { $0.offset >= next }
            if !batch.controlRecords.isEmpty {
                loaded.controlBatches.append(.init(offset: batch.baseOffset, records: batch.controlRecords))
            }
        }
        return loaded
    }

    /// The metadata records from `start` to `end`, exclusive; one call of `body` per batch.
    static func replay(
        _ log: PartitionLog<AnyDisk>, from start: Offset, upTo end: Offset,
        _ body: ([(record: MetadataRecord, offset: Offset)]) throws -> Void
    ) throws {
        try forEachBatch(in: log, from: start, upTo: end) { batch in
            let found = try records(in: batch).filter { $0.offset >= start && $0.offset < end }
            if !found.isEmpty { try body(found) }
        }
    }

    private static func forEachBatch(
        in log: PartitionLog<AnyDisk>, from start: Offset, upTo end: Offset, _ body: (LogBatch) throws -> Void
    ) throws {
        var next = start
        while next < end {
            let region = try log.locate(from: next, upTo: end, maxBytes: readByteCount, minOneBatch: true)
            guard region.byteCount > 0 else {
                throw MetadataLogError(description: "the metadata log has no batch at offset \(next)")
            }
            var bytes = ByteBuffer()
            _ = try region.read(into: &bytes, nonBlocking: false)
            for batch in try ControlBatch.split(bytes) where batch.endOffset > next { try body(batch) }
            next = region.nextOffset
        }
    }

    private static func records(in batch: LogBatch) throws -> [(record: MetadataRecord, offset: Offset)] {
        guard batch.controlRecords.isEmpty, let bytes = batch.bytes else { return [] }
        var result: [(record: MetadataRecord, offset: Offset)] = []
        var iterator = try RecordIterator(bytes)
        while let view = try iterator.next() {
            guard let value = view.value else { continue }
            result.append((try MetadataRecord(reading: value), view.offset))
        }
        return result
    }

    private static func membership(_ known: QuorumMembership?, _ records: [ControlRecord]) -> QuorumMembership? {
        var found = known
        for record in records {
            switch record {
            case .version(let version): found = QuorumMembership(version: version, voters: found?.voters ?? VoterSet([]))
            case .voters(let voters): found = QuorumMembership(version: found?.version ?? 0, voters: voters)
            case .leaderChange, .snapshotHeader, .snapshotFooter, .other: break
            }
        }
        return found
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

    private static func snapshotID(of name: String) -> LogPosition? {
        let suffix = ".checkpoint"
        guard name.hasSuffix(suffix) else { return nil }
        let parts = name.dropLast(suffix.count).split(separator: "-")
        guard parts.count == 2, parts[0].count == 20, parts[1].count == 10, let end = Int64(parts[0]), end > 0,
            let epoch = Int32(parts[1])
        else { return nil }
        return LogPosition(offset: Offset(end), epoch: LeaderEpoch(epoch))
    }

    private static func newestSnapshot(
        in folder: String, disk: AnyDisk
    ) throws -> (id: LogPosition, bytes: ByteBuffer)? {
        let names: [String]
        do throws(DiskError) {
            names = try disk.list(folder)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
        let newest = names.compactMap { name in snapshotID(of: name).map { ($0, name) } }.max { $0.0.offset < $1.0.offset }
        guard let (id, name) = newest else { return nil }
        guard let bytes = try disk.readAll(folder + "/" + name, limit: Int(Int32.max)) else { return nil }
        return (id, bytes)
    }

    /// Encodes a snapshot: header, voters where they are in the log (KIP-853), data, footer (KIP-630).
    package static func snapshot(
        _ records: [MetadataRecord], membership: QuorumMembership, now: Timestamp, epoch: LeaderEpoch
    ) throws -> ByteBuffer {
        var bytes = ByteBuffer()
        var offset: Int64 = 0
        func control(_ records: [ControlRecord]) throws {
            bytes.writeImmutableBuffer(
                try ControlBatch.encode(records, at: Offset(offset), epoch: epoch, timestamp: now))
            offset += Int64(records.count)
        }
        try control([.snapshotHeader(lastTimestamp: now)])
        if membership.version > 0 { try control([.version(membership.version), .voters(membership.voters)]) }
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
        try control([.snapshotFooter])
        return bytes
    }

    /// Removes snapshots older than the one that ends at `newest`.
    package static func removeSnapshots(before newest: Offset, in folder: String, disk: AnyDisk) throws(DiskError) {
        for name in try disk.list(folder) {
            if let id = snapshotID(of: name), id.offset < newest { try disk.remove(folder + "/" + name) }
        }
    }
}
