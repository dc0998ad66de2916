package import MartletLogModel
package import MartletRecordBatch

/// Settings of one partition's log; Kafka's topic configs. Bytes and milliseconds.
package struct LogConfiguration: Equatable, Sendable {
    /// `segment.bytes`. At most `Int32.max`: index entries hold positions in 32 bits.
    package var segmentBytes = 1 << 30
    /// A batch of up to so many bytes is taken even where ``segmentBytes`` is less, in a segment of its own: what a
    /// coordinator has decided must find a place. 0 for topics of clients.
    package var oversizeBatchBytes = 0
    /// `segment.ms`
    package var segmentMilliseconds: Int64 = 7 * 24 * 3_600_000
    /// `segment.index.bytes`
    package var segmentIndexBytes = 10 << 20
    /// `index.interval.bytes`
    package var indexIntervalBytes = 4096
    /// `retention.ms`; nil keeps forever.
    package var retentionMilliseconds: Int64? = 7 * 24 * 3_600_000
    /// `retention.bytes`; nil keeps any amount.
    package var retentionBytes: Int?
    /// `cleanup.policy` contains `delete`
    package var deletesOld = true
    /// `cleanup.policy` contains `compact`
    package var compacts = false
    /// `delete.retention.ms`: how long tombstones stay after the first compaction that saw them.
    package var deleteRetentionMilliseconds: Int64 = 24 * 3_600_000
    /// `min.compaction.lag.ms`
    package var minimumCompactionLagMilliseconds: Int64 = 0
    /// `max.compaction.lag.ms`: what is older is compacted whatever ``minimumCleanableRatio`` says; nil waits for
    /// that.
    package var maximumCompactionLagMilliseconds: Int64?
    /// `min.cleanable.dirty.ratio`
    package var minimumCleanableRatio = 0.5
    /// `file.delete.delay.ms`: deleted segments stay on disk this long for readers that hold a region.
    package var fileDeleteDelayMilliseconds: Int64 = 60_000
    /// `message.timestamp.type`
    package var timestampType = TimestampType.createTime
    /// `producer.id.expiration.ms`
    package var producerExpirationMilliseconds: Int64 = 24 * 3_600_000
    /// Most producers remembered per partition; beyond it the longest silent ones are forgotten, which
    /// only costs them duplicate detection. About 200 bytes each.
    package var producerLimit = 20_000
    /// Blocks are reserved ahead in steps of this many bytes; 0 turns it off.
    package var preallocationStepBytes = 16 << 20
    /// Reserve ahead only once a segment has this many bytes, so that small partitions cost nothing.
    package var preallocationThresholdBytes = 4 << 20
    /// Most zeros written ahead of the end of a segment whose appends are flushed one by one; 0 turns it off.
    package var roomBytes = 256 << 10
    /// So many appends in a row, each flushed before the next, make room worth its writing.
    package var roomThreshold = 8
    /// Internal topics may use the reserve when the disk is full: commits and metadata go on.
    package var mayUseReserve = false
    /// Empty outside of the simulator's mutation table.
    package var suspended: SuspendedRules = []

    package init() {}
}
