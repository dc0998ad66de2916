package import MartletLogModel
import MartletRecordBatch
package import NIOCore
import Synchronization

/// The offsets of one partition that its log directory makes durable from time to time. Written by the
/// partition's owner, read by whichever thread writes the checkpoint files.
package final class PartitionCheckpoint: Sendable {
    package let partition: TopicPartition
    /// Everything before this was flushed; recovery starts here.
    private let recoveryPointValue: Atomic<Int64>
    private let durableRecoveryPointValue: Atomic<Int64>
    private let proposedLogStartValue: Atomic<Int64>
    private let durableLogStartValue: Atomic<Int64>
    private let highWatermarkValue: Atomic<Int64>
    private let compactedEndValue: Atomic<Int64>
    private let installedEndValue = Atomic<Int64>(0)
    /// Cuts of the log so far. ``compactedEnd`` changes under its lock.
    private let cuts = Guarded(0)
    private let isCleanValue: Atomic<Bool>
    private let isDeletedValue = Atomic(false)

    init(
        partition: TopicPartition, recoveryPoint: Offset = .zero, logStart: Offset = .zero,
        highWatermark: Offset = .zero, compactedEnd: Offset = .zero, isClean: Bool
    ) {
        self.partition = partition
        self.compactedEndValue = Atomic(compactedEnd.rawValue)
        self.isCleanValue = Atomic(isClean)
        self.recoveryPointValue = Atomic(recoveryPoint.rawValue)
        self.durableRecoveryPointValue = Atomic(recoveryPoint.rawValue)
        self.proposedLogStartValue = Atomic(logStart.rawValue)
        self.durableLogStartValue = Atomic(logStart.rawValue)
        self.highWatermarkValue = Atomic(highWatermark.rawValue)
    }

    package var recoveryPoint: Offset { Offset(recoveryPointValue.load(ordering: .acquiring)) }
    /// Recovery point in the checkpoint file: where a start after a crash begins.
    package var durableRecoveryPoint: Offset { Offset(durableRecoveryPointValue.load(ordering: .acquiring)) }
    func recoveryPointIsDurable(_ offset: Offset) {
        durableRecoveryPointValue.store(offset.rawValue, ordering: .releasing)
    }

    /// Log start that clients may be told: it is in the checkpoint file.
    package var durableLogStart: Offset { Offset(durableLogStartValue.load(ordering: .acquiring)) }
    package var proposedLogStart: Offset { Offset(proposedLogStartValue.load(ordering: .acquiring)) }
    package var highWatermark: Offset { Offset(highWatermarkValue.load(ordering: .acquiring)) }

    /// Compaction may have left gaps between offsets before this, and nowhere else.
    package var compactedEnd: Offset { Offset(compactedEndValue.load(ordering: .acquiring)) }
    /// For a pass that was planned at `cutCount`: after a cut it says nothing about what is there.
    func raiseCompactedEnd(_ offset: Offset, cutCount: Int) {
        cuts.withLock { count in
            guard count == cutCount else { return }
            _ = compactedEndValue.max(offset.rawValue, ordering: .acquiringAndReleasing)
        }
    }
    /// Rises with each cut: a pass that was planned before has read another log.
    var cutCount: Int { cuts.withLock { $0 } }

    /// A pass of compaction up to here is complete, as far as this process has seen to it: a log that was closed and is
    /// opened again need not begin anew. Not ``compactedEnd``, which is raised before the first file of a pass is
    /// replaced and so says nothing about the others.
    var installedEnd: Offset { Offset(installedEndValue.load(ordering: .acquiring)) }
    func raiseInstalledEnd(_ offset: Offset) {
        _ = installedEndValue.max(offset.rawValue, ordering: .acquiringAndReleasing)
    }

    /// The log was closed cleanly and nobody has opened it since: opening it needs no recovery.
    var isClean: Bool { isCleanValue.load(ordering: .acquiring) }
    func setClean(_ clean: Bool) { isCleanValue.store(clean, ordering: .releasing) }

    /// The partition's folder has been moved away to be removed: work that is still under way on its log, on
    /// whichever thread, finds nothing there, or a new partition of the name, and means nothing any more.
    var isDeleted: Bool { isDeletedValue.load(ordering: .acquiring) }
    func setDeleted() { isDeletedValue.store(true, ordering: .releasing) }

    func setRecoveryPoint(_ offset: Offset) { recoveryPointValue.store(offset.rawValue, ordering: .releasing) }
    func setHighWatermark(_ offset: Offset) { highWatermarkValue.store(offset.rawValue, ordering: .releasing) }
    func proposeLogStart(_ offset: Offset) {
        _ = proposedLogStartValue.max(offset.rawValue, ordering: .acquiringAndReleasing)
    }
    func logStartIsDurable(_ offset: Offset) {
        _ = durableLogStartValue.max(offset.rawValue, ordering: .acquiringAndReleasing)
    }
    /// For ``PartitionLog/repair()``: no log reaches to where this one is said to start.
    func lowerLogStart(to offset: Offset) {
        proposedLogStartValue.store(offset.rawValue, ordering: .releasing)
        durableLogStartValue.store(offset.rawValue, ordering: .releasing)
    }
    /// The log ends there now, on disk as well: what will be written behind it has no gaps. True when that is to be
    /// made durable before anything is.
    func logWasCut(to end: Offset) -> Bool {
        cuts.withLock { count in
            count += 1
            _ = installedEndValue.min(end.rawValue, ordering: .acquiringAndReleasing)
            return compactedEndValue.min(end.rawValue, ordering: .acquiringAndReleasing).oldValue > end.rawValue
        }
    }
    /// For ``PartitionLog/restart(at:)``: an empty log that starts there, and nothing known of before.
    func restart(at start: Offset) {
        lowerLogStart(to: start)
        setRecoveryPoint(start)
        highWatermarkValue.store(start.rawValue, ordering: .releasing)
        cuts.withLock { count in
            count += 1
            compactedEndValue.store(start.rawValue, ordering: .releasing)
            installedEndValue.store(start.rawValue, ordering: .releasing)
        }
    }
}

/// Text file of `topic partition offset` rows under a version and a count line, as Kafka writes them. The last
/// row holds the checksum of all before it: a row like the others, of a topic that cannot exist, so that
/// Kafka's tools read the file. A file without it, as Kafka writes them, is taken as it is.
package enum OffsetCheckpoint {
    package static let recoveryPoint = "recovery-point-offset-checkpoint"
    package static let logStart = "log-start-offset-checkpoint"
    package static let highWatermark = "replication-offset-checkpoint"
    package static let compactedEnd = "cleaner-offset-checkpoint"
    /// A row is at most a topic name, two numbers and separators; this allows a million partitions.
    static let byteLimit = 300 << 20
    /// `#` is in no topic's name, and two of them survive any one flipped bit.
    private static let checksumTopic = "##crc32c"

    /// What the next start makes of a directory without the file.
    static func consequence(ofRemoving name: String) -> String {
        switch name {
        case recoveryPoint: "every log is then checked from its start"
        case logStart: "every log then starts with its first segment, and what DeleteRecords took from that is back"
        case compactedEnd: "gaps between offsets are then not told from those that compaction left"
        default: "it is written anew"
        }
    }

    package static func encode(_ offsets: [(TopicPartition, Offset)]) -> ByteBuffer {
        var buffer = ByteBuffer()
        buffer.reserveCapacity(16 + offsets.count * 48)
        buffer.writeString("0\n\(offsets.count + 1)\n")
        for (partition, offset) in offsets {
            buffer.writeString("\(partition.topic) \(partition.partition) \(offset)\n")
        }
        buffer.writeString("\(checksumTopic) 0 \(crc32c(buffer))\n")
        return buffer
    }

    /// `nil` when the bytes are not such a file, or not as they were written.
    package static func decode(_ buffer: ByteBuffer) -> [TopicPartition: Offset]? {
        guard var rows = CheckpointText.decode(buffer, columns: 3) else { return nil }
        if let last = rows.last, last[0] == checksumTopic {
            guard let newline = buffer.readableBytesView.dropLast().lastIndex(of: UInt8(ascii: "\n")),
                last[1] == "0", last[2] == "\(crc32c(buffer, range: buffer.readerIndex..<newline + 1))"
            else { return nil }
            rows.removeLast()
        }
        var offsets: [TopicPartition: Offset] = [:]
        offsets.reserveCapacity(rows.count)
        for row in rows {
            guard TopicName.problem(String(row[0])) == nil, let partition = Int32(row[1]), partition >= 0,
                let offset = Int64(row[2]), offset >= 0, offset <= Offset.storedLimit
            else { return nil }
            offsets[TopicPartition(String(row[0]), partition)] = Offset(offset)
        }
        return offsets
    }
}

extension Offset {
    /// Largest offset accepted from a file: what lies above cannot be counted on without overflow.
    static var storedLimit: Int64 { Int64.max - (1 << 33) }
}

/// `partition.metadata`: which topic the folder belongs to, since a name may be used again (KIP-516).
package enum PartitionMetadata {
    package static func encode(_ topicID: UniversalID) -> ByteBuffer {
        ByteBuffer(string: "version: 0\ntopic_id: \(topicID)\n")
    }

    package static func decode(_ buffer: ByteBuffer) -> UniversalID? {
        let lines = String(buffer: buffer).split(separator: "\n")
        guard lines.count == 2, lines[0] == "version: 0", lines[1].hasPrefix("topic_id: ") else { return nil }
        return UniversalID(lines[1].dropFirst("topic_id: ".count))
    }
}

/// `meta.properties`: whose directory this is.
package struct MetaProperties: Equatable, Sendable {
    package static let fileName = "meta.properties"
    package var clusterID: String
    package var nodeID: BrokerID
    package var directoryID: UniversalID
    /// As what the directory was made; holds for its whole life.
    package var origin: Origin

    /// How the directory's node came to its cluster.
    package enum Origin: String, Sendable {
        /// It was the whole cluster.
        case alone
        /// As one of several that founded it: the voters by configuration count until the log names others.
        case founded
        /// It came to a cluster that existed: it is no proof that the node is one of its founders.
        case joined
    }

    private static let originKey = "martlet.origin"

    package init(clusterID: String, nodeID: BrokerID, directoryID: UniversalID, origin: Origin = .alone) {
        self.clusterID = clusterID
        self.nodeID = nodeID
        self.directoryID = directoryID
        self.origin = origin
    }

    package func encode() -> ByteBuffer {
        ByteBuffer(
            string: "#\nversion=1\ncluster.id=\(clusterID)\nnode.id=\(nodeID)\ndirectory.id=\(directoryID)\n"
                + (origin == .alone ? "" : "\(Self.originKey)=\(origin.rawValue)\n"))
    }

    package init?(decoding buffer: ByteBuffer) {
        var values: [Substring: Substring] = [:]
        for line in String(buffer: buffer).split(separator: "\n") where !line.hasPrefix("#") {
            let parts = line.split(separator: "=", maxSplits: 1)
            guard parts.count == 2 else { return nil }
            values[parts[0]] = parts[1]
        }
        guard values["version"] == "1", let cluster = values["cluster.id"],
            let node = values["node.id"].flatMap({ Int32($0) }),
            let directory = values["directory.id"].flatMap({ UniversalID($0) })
        else { return nil }
        var origin = Origin.alone
        if let text = values[Substring(Self.originKey)] {
            guard let known = Origin(rawValue: String(text)) else { return nil }
            origin = known
        }
        self.init(
            clusterID: String(cluster), nodeID: BrokerID(node), directoryID: directory,
            origin: origin)
    }
}

/// `.kafka_cleanshutdown`: everything was flushed and closed; holds the broker epoch of that run (KIP-966).
enum CleanShutdownMark {
    static let fileName = ".kafka_cleanshutdown"

    static func encode(brokerEpoch: Int64) -> ByteBuffer {
        ByteBuffer(string: "{\"version\":0,\"brokerEpoch\":\(brokerEpoch)}")
    }

    /// -1 when the mark is of a release that did not write the epoch.
    static func decode(_ buffer: ByteBuffer) -> Int64 {
        let text = String(buffer: buffer)
        guard let colon = text.utf8.lastIndex(of: UInt8(ascii: ":")) else { return -1 }
        return Int64(text[text.utf8.index(after: colon)...].prefix { $0 == "-" || $0.isNumber }) ?? -1
    }
}
