/// What a batch may be. The broker derives one per topic and request.
package struct BatchLimits: Hashable, Sendable {
    /// Kafka's default of `message.max.bytes`: 1 MiB and the 12 bytes of offset and length.
    package static let defaultMaxBatchBytes = 1_048_588
    /// Bound on what a compressed batch may inflate to. It costs time rather than memory (the walk streams
    /// through a window), and a 1 MiB batch of very regular records reaches a hundredfold honestly.
    package static let defaultMaxInflatedBytes = 128 * 1024 * 1024

    /// Whether the batch comes from a client, or was accepted before and is read back (from disk, from a
    /// leader, by a consumer). The latter may be a control batch, carry append times and have lost records
    /// to compaction.
    package enum Origin: Sendable { case producer, stored }

    package var origin: Origin
    /// Bytes of the whole batch, header included.
    package var maxBatchBytes: Int
    /// Bytes of the record section after decompression.
    package var maxInflatedBytes: Int
    /// Smallest and largest create time accepted, in milliseconds since 1970, both inclusive: now minus
    /// `message.timestamp.before.max.ms`, now plus `message.timestamp.after.max.ms`. -1 (no time) always passes.
    package var earliestTimestamp: Int64
    package var latestTimestamp: Int64

    package init(
        origin: Origin = .producer, maxBatchBytes: Int = BatchLimits.defaultMaxBatchBytes,
        maxInflatedBytes: Int = BatchLimits.defaultMaxInflatedBytes, earliestTimestamp: Int64 = .min,
        latestTimestamp: Int64 = .max
    ) {
        self.origin = origin
        self.maxBatchBytes = maxBatchBytes
        self.maxInflatedBytes = maxInflatedBytes
        self.earliestTimestamp = earliestTimestamp
        self.latestTimestamp = latestTimestamp
    }

    /// For batches that were validated when they were appended.
    package static let stored = BatchLimits(origin: .stored, maxBatchBytes: Int(Int32.max) + 12)
}

/// What walking the records of a batch found.
package struct RecordFacts: Hashable, Sendable {
    package var recordCount: Int32
    /// Greatest timestamp of a record; with append times the batch's. Where it differs from the header's,
    /// the producer wrote a wrong header: see ``RecordBatchPatch/setMaxTimestamp(_:in:)``.
    package var maxTimestamp: Int64
    /// Offset delta of the first record with that timestamp (ListOffsets -3, KIP-734).
    package var maxTimestampOffsetDelta: Int32
    /// Bytes of the record section, decompressed.
    package var recordByteCount: Int
}
