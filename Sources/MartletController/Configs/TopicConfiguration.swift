/// What happens to old segments of a topic. Empty: everything is kept.
package struct CleanupPolicy: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    package static let delete = CleanupPolicy(rawValue: 1)
    package static let compact = CleanupPolicy(rawValue: 2)
}

/// Codec that a topic asks for.
package enum TopicCompression: String, Hashable, Sendable {
    /// Keep the producer's bytes.
    case producer
    case uncompressed, gzip, snappy, lz4, zstd
}

package enum TimestampSource: String, Hashable, Sendable {
    case createTime = "CreateTime"
    case logAppendTime = "LogAppendTime"
}

/// See `martlet.durability`.
package enum Durability: String, Hashable, Sendable {
    case fsync, relaxed
}

/// See `martlet.validation`.
package enum BatchValidation: String, Hashable, Sendable {
    case records, header
}

/// Effective, typed configuration of one topic: its own values over the broker's over the built-in ones.
/// Times in milliseconds, sizes in bytes; `nil` where the text says "no limit".
package struct TopicConfiguration: Sendable, Equatable {
    package var cleanupPolicy: CleanupPolicy
    package var compression: TopicCompression
    package var gzipLevel: Int32
    package var lz4Level: Int32
    package var zstdLevel: Int32
    package var deleteRetentionMilliseconds: Int64
    package var fileDeleteDelayMilliseconds: Int64
    package var indexIntervalBytes: Int
    package var durability: Durability
    package var validation: BatchValidation
    package var maxCompactionLagMilliseconds: Int64
    package var maxMessageBytes: Int
    package var timestampAfterMaxMilliseconds: Int64
    package var timestampBeforeMaxMilliseconds: Int64
    package var timestampSource: TimestampSource
    package var minCleanableDirtyRatio: Double
    package var minCompactionLagMilliseconds: Int64
    package var minInsyncReplicas: Int
    package var retentionBytes: Int64?
    package var retentionMilliseconds: Int64?
    package var segmentBytes: Int
    package var segmentIndexBytes: Int
    package var segmentJitterMilliseconds: Int64
    package var segmentMilliseconds: Int64
    /// Whether a replica that may lack acknowledged records leads rather than nobody.
    package var uncleanLeaderElection: Bool

    /// Everything at its built-in default.
    package static let standard = TopicConfiguration(overrides: [:], broker: BrokerConfigValues())

    /// Reads the effective values. They were validated when they were set; text that does not parse can only
    /// come from a log written by another release, and then the built-in default applies.
    package init(overrides: [String: String], broker: BrokerConfigValues) {
        func text(_ name: String) -> String {
            guard let definition = TopicConfigTable.table[name] else {
                preconditionFailure("no topic configuration \(name)")
            }
            guard let value = broker.value(definition, overrides: overrides),
                definition.problem(with: value) == nil
            else { return definition.defaultValue ?? "" }
            return value
        }
        func number(_ name: String) -> Int64 { Int64(text(name)) ?? 0 }
        func limit(_ name: String) -> Int64? { number(name) < 0 ? nil : number(name) }

        var policy: CleanupPolicy = []
        for word in ConfigText.items(text(TopicConfigName.cleanupPolicy)) {
            policy.insert(word == "compact" ? .compact : .delete)
        }
        cleanupPolicy = policy
        compression = TopicCompression(rawValue: text(TopicConfigName.compressionType)) ?? .producer
        gzipLevel = Int32(clamping: number(TopicConfigName.compressionGzipLevel))
        lz4Level = Int32(clamping: number(TopicConfigName.compressionLZ4Level))
        zstdLevel = Int32(clamping: number(TopicConfigName.compressionZstdLevel))
        deleteRetentionMilliseconds = number(TopicConfigName.deleteRetention)
        fileDeleteDelayMilliseconds = number(TopicConfigName.fileDeleteDelay)
        indexIntervalBytes = Int(number(TopicConfigName.indexInterval))
        durability = Durability(rawValue: text(TopicConfigName.durability)) ?? .fsync
        validation = BatchValidation(rawValue: text(TopicConfigName.validation)) ?? .records
        maxCompactionLagMilliseconds = number(TopicConfigName.maxCompactionLag)
        maxMessageBytes = Int(number(TopicConfigName.maxMessageBytes))
        timestampAfterMaxMilliseconds = number(TopicConfigName.timestampAfterMax)
        timestampBeforeMaxMilliseconds = number(TopicConfigName.timestampBeforeMax)
        timestampSource = TimestampSource(rawValue: text(TopicConfigName.timestampType)) ?? .createTime
        minCleanableDirtyRatio = Double(text(TopicConfigName.minCleanableDirtyRatio)) ?? 0.5
        minCompactionLagMilliseconds = number(TopicConfigName.minCompactionLag)
        minInsyncReplicas = Int(number(TopicConfigName.minInsyncReplicas))
        retentionBytes = limit(TopicConfigName.retentionBytes)
        retentionMilliseconds = limit(TopicConfigName.retention)
        let internalSegmentBytes = Int64(text(TopicConfigName.internalSegmentBytes))
        segmentBytes = Int(internalSegmentBytes ?? number(TopicConfigName.segmentBytes))
        segmentIndexBytes = Int(number(TopicConfigName.segmentIndexBytes))
        segmentJitterMilliseconds = number(TopicConfigName.segmentJitter)
        segmentMilliseconds = number(TopicConfigName.segmentInterval)
        uncleanLeaderElection = text(TopicConfigName.uncleanLeaderElection) == "true"
    }
}
