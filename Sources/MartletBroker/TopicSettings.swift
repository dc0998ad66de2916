package import MartletController
package import MartletLogModel
package import MartletRecordBatch
package import MartletReplication
package import MartletStorage

extension TopicImage {
    /// The topic's durability in the replication core's words.
    package var replicaDurability: PartitionReplica.Durability {
        switch configuration.durability {
        case .fsync: .fsync
        case .relaxed: .relaxed
        }
    }

    /// The topic's configuration in the storage engine's words.
    package func logConfiguration(
        producerExpirationMilliseconds: Int64, suspended: SuspendedRules = []
    ) -> LogConfiguration {
        var log = LogConfiguration()
        log.suspended = suspended
        let topic = configuration
        log.segmentBytes = topic.segmentBytes
        log.segmentMilliseconds = topic.segmentMilliseconds
        log.segmentIndexBytes = topic.segmentIndexBytes
        log.indexIntervalBytes = topic.indexIntervalBytes
        log.retentionMilliseconds = topic.retentionMilliseconds
        log.retentionBytes = topic.retentionBytes.map { Int($0) }
        log.deletesOld = topic.cleanupPolicy.contains(.delete)
        log.compacts = topic.cleanupPolicy.contains(.compact)
        log.deleteRetentionMilliseconds = topic.deleteRetentionMilliseconds
        log.minimumCompactionLagMilliseconds = topic.minCompactionLagMilliseconds
        if log.compacts, topic.maxCompactionLagMilliseconds < Int64.max {
            log.maximumCompactionLagMilliseconds = topic.maxCompactionLagMilliseconds
            // Only closed segments are compacted.
            log.segmentMilliseconds = min(log.segmentMilliseconds, topic.maxCompactionLagMilliseconds)
        }
        log.minimumCleanableRatio = topic.minCleanableDirtyRatio
        log.fileDeleteDelayMilliseconds = topic.fileDeleteDelayMilliseconds
        log.timestampType = topic.timestampSource == .logAppendTime ? .logAppendTime : .createTime
        log.producerExpirationMilliseconds = producerExpirationMilliseconds
        log.mayUseReserve = isInternal
        if isInternal { log.oversizeBatchBytes = topic.maxMessageBytes }
        return log
    }
}

extension TopicConfiguration {
    /// Codec and level a batch must be re-encoded to, or `nil` if it may stay as the producer made it
    /// (`compression.type`).
    package func targetCodec(for current: CompressionCodec) -> (codec: CompressionCodec, level: Int32)? {
        let target: (codec: CompressionCodec, level: Int32) =
            switch compression {
            case .producer: (current, 0)
            case .uncompressed: (.none, 0)
            case .gzip: (.gzip, gzipLevel)
            case .snappy: (.snappy, 0)
            case .lz4: (.lz4, lz4Level)
            case .zstd: (.zstd, zstdLevel)
            }
        return target.codec == current ? nil : target
    }
}
