/// Every topic configuration of the Kafka 4.3 profile, plus ours. Each is honoured, harmless, or refused
/// with the reason: nothing is accepted that the broker would then ignore (architecture §8).
package enum TopicConfigName {
    package static let cleanupPolicy = "cleanup.policy"
    package static let compressionGzipLevel = "compression.gzip.level"
    package static let compressionLZ4Level = "compression.lz4.level"
    package static let compressionType = "compression.type"
    package static let compressionZstdLevel = "compression.zstd.level"
    package static let deleteRetention = "delete.retention.ms"
    package static let fileDeleteDelay = "file.delete.delay.ms"
    package static let flushMessages = "flush.messages"
    package static let flushInterval = "flush.ms"
    package static let indexInterval = "index.interval.bytes"
    package static let internalSegmentBytes = "internal.segment.bytes"
    package static let durability = "martlet.durability"
    package static let validation = "martlet.validation"
    package static let maxCompactionLag = "max.compaction.lag.ms"
    package static let maxMessageBytes = "max.message.bytes"
    package static let timestampAfterMax = "message.timestamp.after.max.ms"
    package static let timestampBeforeMax = "message.timestamp.before.max.ms"
    package static let timestampType = "message.timestamp.type"
    package static let minCleanableDirtyRatio = "min.cleanable.dirty.ratio"
    package static let minCompactionLag = "min.compaction.lag.ms"
    package static let minInsyncReplicas = "min.insync.replicas"
    package static let uncleanLeaderElection = "unclean.leader.election.enable"
    package static let retentionBytes = "retention.bytes"
    package static let retention = "retention.ms"
    package static let segmentBytes = "segment.bytes"
    package static let segmentIndexBytes = "segment.index.bytes"
    package static let segmentJitter = "segment.jitter.ms"
    package static let segmentInterval = "segment.ms"
}

package enum TopicConfigTable {
    private static let hour: Int64 = 3_600_000
    private static let minute: Int64 = 60_000
    private static let largest = String(Int64.max)
    private static let tiered = "there is no tiered storage; all segments are local"

    package static let table = ConfigTable([
        .init(
            TopicConfigName.cleanupPolicy, .list, default: "delete", .listOf(["delete", "compact"]),
            synonyms: [.init("log.cleanup.policy")],
            "What happens to old segments: 'delete' removes them by age or size, 'compact' keeps the last record of each key; both may be given, and an empty list keeps everything."
        ),
        .init(
            TopicConfigName.compressionGzipLevel, .int, default: "-1", .between(-1, 9),
            synonyms: [.init("compression.gzip.level")],
            "Effort of gzip, 1 (fast) to 9 (small), -1 for the library's choice, when the broker itself compresses."
        ),
        .init(
            TopicConfigName.compressionLZ4Level, .int, default: "9", .between(1, 17),
            synonyms: [.init("compression.lz4.level")],
            "Effort of lz4, 1 to 17, when the broker itself compresses."),
        .init(
            TopicConfigName.compressionType, .string, default: "producer",
            .oneOf(["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]),
            synonyms: [.init("compression.type")],
            "Codec of stored batches. 'producer' keeps the producer's bytes as they are, which is the fast path; any other codec makes the broker re-encode batches that arrive in a different one."
        ),
        .init(
            TopicConfigName.compressionZstdLevel, .int, default: "3", .between(-131_072, 22),
            synonyms: [.init("compression.zstd.level")],
            "Effort of zstd, up to 22, when the broker itself compresses."),
        .init(
            TopicConfigName.deleteRetention, .long, default: "86400000", .atLeast(0),
            synonyms: [.init("log.cleaner.delete.retention.ms")],
            "How long, in milliseconds, a tombstone stays readable after compaction has reached it, so that a reader that is behind still learns of the deletion."
        ),
        .init(
            TopicConfigName.fileDeleteDelay, .long, default: "60000", .atLeast(0),
            synonyms: [.init("log.segment.delete.delay.ms")],
            "Milliseconds between taking a segment out of the log and removing its files."),
        .init(
            TopicConfigName.flushMessages, .long, default: largest, .atLeast(1),
            support: .noEffect(
                "with martlet.durability=fsync every acknowledged record is flushed, which is stricter than any value"
            ),
            synonyms: [.init("log.flush.interval.messages")],
            "Records between two flushes. The durable mode flushes before it acknowledges, whatever the number; with martlet.durability=relaxed a value below the default is refused."
        ),
        .init(
            TopicConfigName.flushInterval, .long, default: largest, .atLeast(0),
            support: .noEffect(
                "with martlet.durability=fsync every acknowledged record is flushed, which is stricter than any value"
            ),
            synonyms: [.init("log.flush.interval.ms"), .init("log.flush.scheduler.interval.ms")],
            "Milliseconds between two flushes. The durable mode flushes before it acknowledges, whatever the number; with martlet.durability=relaxed a value below the default is refused."
        ),
        .init(
            "follower.replication.throttled.replicas", .list, default: "",
            support: .defaultOnly("replication is not throttled per partition in this release"),
            "Partition replicas whose followers copy at a limited rate."),
        .init(
            TopicConfigName.indexInterval, .int, default: "4096", .atLeast(0),
            synonyms: [.init("log.index.interval.bytes")],
            "Bytes of log between two entries of the offset index."),
        .init(
            TopicConfigName.internalSegmentBytes, .int, default: nil, .atLeast(1024), hidden: true,
            "Segment size for tests; wins over segment.bytes and may be smaller than it allows."),
        .init(
            "leader.replication.throttled.replicas", .list, default: "",
            support: .defaultOnly("replication is not throttled per partition in this release"),
            "Partition replicas that the leader serves at a limited rate."),
        .init(
            "local.retention.bytes", .long, default: "-2", .atLeast(-2), support: .defaultOnly(tiered),
            synonyms: [.init("log.local.retention.bytes")],
            "Bytes kept locally when older segments live in tiered storage."),
        .init(
            "local.retention.ms", .long, default: "-2", .atLeast(-2), support: .defaultOnly(tiered),
            synonyms: [.init("log.local.retention.ms")],
            "Milliseconds kept locally when older segments live in tiered storage."),
        .init(
            TopicConfigName.durability, .string, default: "fsync", .oneOf(["fsync", "relaxed"]),
            synonyms: [.init("martlet.durability")],
            "What an acks=all acknowledgement promises: 'fsync' that the record is on disk on every in-sync replica, 'relaxed' that it is in their memory, as Kafka does. Consumers never see past the same mark."
        ),
        .init(
            TopicConfigName.validation, .string, default: "records", .oneOf(["records", "header"]),
            synonyms: [.init("martlet.validation")],
            "How far the broker checks a batch before it stores it: 'records' looks at every record, decompressing if needed; 'header' trusts what the checksum covers."
        ),
        .init(
            TopicConfigName.maxCompactionLag, .long, default: largest, .atLeast(1),
            support: .defaultOnly(
                "compaction starts by the share of dirty bytes alone; use a small min.cleanable.dirty.ratio and segment.ms"
            ),
            synonyms: [.init("log.cleaner.max.compaction.lag.ms")],
            "Milliseconds after which a record must have been considered by compaction, however clean the log is."
        ),
        .init(
            TopicConfigName.maxMessageBytes, .int, default: "1048588", .atLeast(0),
            synonyms: [.init("message.max.bytes")],
            "Largest record batch in bytes, after compression, that the topic takes."),
        .init(
            TopicConfigName.timestampAfterMax, .long, default: "3600000", .atLeast(0),
            synonyms: [.init("log.message.timestamp.after.max.ms")],
            "How many milliseconds a record's timestamp may lie ahead of the broker's clock; later ones are refused."
        ),
        .init(
            TopicConfigName.timestampBeforeMax, .long, default: largest, .atLeast(0),
            synonyms: [.init("log.message.timestamp.before.max.ms")],
            "How many milliseconds a record's timestamp may lie behind the broker's clock; earlier ones are refused."
        ),
        .init(
            TopicConfigName.timestampType, .string, default: "CreateTime",
            .oneOf(["CreateTime", "LogAppendTime"]),
            synonyms: [.init("log.message.timestamp.type")],
            "Whether records keep the producer's timestamp or get the broker's at append."),
        .init(
            TopicConfigName.minCleanableDirtyRatio, .double, default: "0.5", .fraction,
            synonyms: [.init("log.cleaner.min.cleanable.ratio")],
            "Share of not yet compacted bytes at which compaction starts."),
        .init(
            TopicConfigName.minCompactionLag, .long, default: "0", .atLeast(0),
            synonyms: [.init("log.cleaner.min.compaction.lag.ms")],
            "Milliseconds a record stays untouched by compaction."),
        .init(
            TopicConfigName.minInsyncReplicas, .int, default: "1", .atLeast(1),
            synonyms: [.init("min.insync.replicas")],
            "Replicas that must be in sync before a write with acks=all is taken; at most the replicas the partition has count."
        ),
        .init(
            "preallocate", .boolean, default: "false",
            support: .noEffect(
                "segments are preallocated off the write path where the file system gains from it"),
            synonyms: [.init("log.preallocate")],
            "Reserve a segment's space when it is created."),
        .init(
            "remote.log.copy.disable", .boolean, default: "false", support: .defaultOnly(tiered),
            "Stop copying segments to tiered storage."),
        .init(
            "remote.log.delete.on.disable", .boolean, default: "false", support: .defaultOnly(tiered),
            "Remove a topic's remote segments when tiered storage is switched off for it."),
        .init(
            "remote.storage.enable", .boolean, default: "false", support: .defaultOnly(tiered),
            "Keep old segments in tiered storage."),
        .init(
            TopicConfigName.retentionBytes, .long, default: "-1", .atLeast(-1),
            synonyms: [.init("log.retention.bytes")],
            "Bytes kept per partition before old segments are removed; -1 sets no limit."),
        .init(
            TopicConfigName.retention, .long, default: "604800000", .atLeast(-1),
            synonyms: [
                .init("log.retention.ms"), .init("log.retention.minutes", scale: minute),
                .init("log.retention.hours", scale: hour),
            ],
            "Milliseconds a record is kept before its segment may be removed; -1 keeps it for ever."),
        .init(
            TopicConfigName.segmentBytes, .int, default: "1073741824", .atLeast(1_048_576),
            synonyms: [.init("log.segment.bytes")],
            "Size in bytes at which a segment is closed and the next one begun."),
        .init(
            TopicConfigName.segmentIndexBytes, .int, default: "10485760", .atLeast(4),
            synonyms: [.init("log.index.size.max.bytes")],
            "Largest size in bytes of a segment's offset index; the segment is closed when it is reached."),
        .init(
            TopicConfigName.segmentJitter, .long, default: "0", .atLeast(0),
            support: .noEffect(
                "a segment is closed by the append that finds it too old, so partitions do not roll in step"),
            synonyms: [.init("log.roll.jitter.ms"), .init("log.roll.jitter.hours", scale: hour)],
            "Random milliseconds by which segments of different partitions are closed earlier, so that they do not all roll at once."
        ),
        .init(
            TopicConfigName.segmentInterval, .long, default: "604800000", .atLeast(1),
            synonyms: [.init("log.roll.ms"), .init("log.roll.hours", scale: hour)],
            "Milliseconds after which a segment is closed even if it is not full, so that retention can reach its records."
        ),
        .init(
            TopicConfigName.uncleanLeaderElection, .boolean, default: "false",
            synonyms: [.init("unclean.leader.election.enable")],
            "Let a replica that may lack acknowledged records become leader as a last resort: they are lost then."),
    ])

    /// Names that users of other releases may still send, with the reason why they are refused.
    package static let retired: [String: String] = [
        "message.format.version": "Kafka 4.0 removed it; record batches have format 2",
        "message.downconversion.enable": "Kafka 4.0 removed it; batches are never down-converted",
        "message.timestamp.difference.max.ms":
            "Kafka 4.0 removed it; use message.timestamp.before.max.ms and message.timestamp.after.max.ms",
        "remote.copy.lag.ms": tiered,
        "remote.copy.lag.bytes": tiered,
        "errors.deadletterqueue.group.enable":
            "dead letter queues of share groups are newer than the Kafka 4.3 profile",
    ]

    /// Why `name` is not a topic configuration one can set.
    package static func problem(unknown name: String) -> String {
        if let reason = retired[name] { return "Topic configuration \(name) is not available: \(reason)" }
        return "Unknown topic config name: \(ConfigText.shortened(name))"
    }

    /// Rules between configurations of one topic; `value` yields the effective text of a configuration.
    package static func conflict(_ value: (String) -> String?) -> String? {
        if value(TopicConfigName.durability) == "relaxed" {
            for name in [TopicConfigName.flushMessages, TopicConfigName.flushInterval] {
                if let text = value(name), text != largest {
                    return
                        "Configuration \(name)=\(text) asks for flushes that martlet.durability=relaxed does not make; use martlet.durability=fsync, which flushes before every acknowledgement, or leave \(name) alone"
                }
            }
        }
        if let least = value(TopicConfigName.minCompactionLag).flatMap(Int64.init),
            let most = value(TopicConfigName.maxCompactionLag).flatMap(Int64.init), most < least
        {
            return "max.compaction.lag.ms (\(most)) must not be below min.compaction.lag.ms (\(least))"
        }
        return nil
    }
}
