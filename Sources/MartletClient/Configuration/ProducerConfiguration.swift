public import NIOCore

/// Which replicas must have a record before the broker acknowledges it (Kafka's `acks`).
public enum Acknowledgement: Sendable, Hashable {
    /// No answer at all: fastest, and nothing is known about the record's fate.
    case none
    /// The leader has appended the record.
    case leader
    /// All in-sync replicas have it; on a Martlet broker with durable topics it is also flushed to disk.
    case all
}

/// Codec for record batches and how hard it tries.
public enum Compression: Sendable, Hashable {
    case none
    /// Levels 1 (fast) to 9 (small); `nil` is zlib's own default, 6.
    case gzip(level: Int? = nil)
    case snappy
    case lz4
    /// Levels 1 to 22; `nil` is zstd's own default, 3.
    case zstd(level: Int? = nil)

    /// Parses Kafka's names `none`, `gzip`, `snappy`, `lz4`, `zstd`, with an optional level as in `zstd:9`.
    public init(_ text: some StringProtocol) throws(ClientError) {
        let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        let level = parts.count > 1 ? Int(parts[1]) : nil
        let levelIsMissing = parts.count > 1 && level == nil
        let name = parts.first.map { String($0) }
        switch name {
        case "none" where parts.count == 1: self = .none
        case "gzip" where !levelIsMissing && (1...9).contains(level ?? 6): self = .gzip(level: level)
        case "snappy" where parts.count == 1: self = .snappy
        case "lz4" where parts.count == 1: self = .lz4
        case "zstd" where !levelIsMissing && (1...22).contains(level ?? 3): self = .zstd(level: level)
        case _:
            throw ClientError(
                .invalidConfiguration,
                "compression '\(text)' is unknown; allowed: none, gzip[:1-9], snappy, lz4, zstd[:1-22]")
        }
    }
}

/// How a record without an explicit partition finds its partition.
public enum Partitioner: Sendable {
    /// Records with a key by murmur2 hash, as Java's default producer does, so both agree on the partition of a
    /// key; records without a key stick to one partition until its batch is sent, then move on (KIP-480).
    case standard
    /// One record after the other, whatever the key.
    case roundRobin
    /// A function of the key and the number of partitions; must return `0..<partitionCount` and must not block.
    case custom(@Sendable (_ key: ByteBuffer?, _ partitionCount: Int) -> Int)
}

/// Settings of a ``Producer``. The defaults favour safety: acknowledged by all replicas, idempotent.
public struct ProducerConfiguration: Sendable {
    /// How to reach the cluster.
    public var client: ClientConfiguration
    /// When the broker acknowledges. Idempotence needs ``Acknowledgement/all``.
    public var acknowledgement: Acknowledgement = .all
    /// Whether the broker discards duplicates made by retries and keeps the order per partition (KIP-98).
    public var isIdempotent = true
    /// Name under which transactions outlive this producer (KIP-98): a producer that starts with the same id ends
    /// what the one before left open, and shuts that one out. `nil`: no transactions.
    public var transactionalID: String?
    /// Longest time for one transaction, after which the coordinator aborts it and shuts this producer out. Brokers
    /// allow up to `transaction.max.timeout.ms`, 15 minutes by default.
    public var transactionTimeout: Duration = .seconds(60)
    /// How long a batch that is not full waits for more records while another one is on its way to the same
    /// partition. A batch for an idle partition with somebody awaiting it is sent at once.
    public var linger: Duration = .milliseconds(5)
    /// Size at which a batch counts as full, before compression.
    public var batchBytes = 256 * 1024
    /// Largest record or batch accepted, in bytes, before compression; brokers refuse above `message.max.bytes`.
    public var requestByteLimit = 1024 * 1024
    /// Bytes of records waiting or in flight at which `enqueue` suspends.
    public var bufferBytes = 32 * 1024 * 1024
    /// Codec of new batches.
    public var compression: Compression = .none
    /// Requests on their way to one broker. At most 5 with idempotence, so that the order survives retries.
    public var inFlightLimit = 5
    /// Attempts after the first for one batch; by default only ``deliveryTimeout`` ends them.
    public var retryLimit = Int.max
    /// Longest time from handing over a record to its acknowledgement or failure.
    public var deliveryTimeout: Duration = .seconds(120)
    /// Whether a topic that does not exist may be created by sending to it, on brokers that allow that.
    public var mayCreateTopics = true
    /// How records without an explicit partition find theirs.
    public var partitioner: Partitioner = .standard

    public init(_ client: ClientConfiguration) { self.client = client }

    /// Default settings for a comma-separated list of `HOST:PORT`.
    public init(bootstrap: String) throws(ClientError) {
        self.client = try ClientConfiguration(bootstrap: bootstrap)
    }

    func validate() throws(ClientError) {
        try client.validate()
        func require(_ holds: Bool, _ key: String, _ value: some CustomStringConvertible, _ allowed: String)
            throws(ClientError)
        { try ClientConfiguration.require(holds, key, value, allowed) }
        try require(
            !isIdempotent || acknowledgement == .all, "acknowledgement", "\(acknowledgement)",
            "all while isIdempotent is on")
        try require(
            inFlightLimit >= 1 && (!isIdempotent || inFlightLimit <= 5), "inFlightLimit", inFlightLimit,
            "1 to 5 (more only with isIdempotent = false)")
        try require(transactionalID != "", "transactionalID", "empty", "a name, or nil")
        try require(
            transactionalID == nil || isIdempotent, "isIdempotent", isIdempotent, "true with a transactionalID")
        try require(transactionTimeout > .zero, "transactionTimeout", transactionTimeout, "more than zero")
        try require(linger >= .zero, "linger", linger, "zero or more")
        try require(deliveryTimeout > .zero, "deliveryTimeout", deliveryTimeout, "more than zero")
        try require(batchBytes >= 1, "batchBytes", batchBytes, "1 or more")
        try require(
            requestByteLimit >= 1024 && requestByteLimit <= 1 << 30, "requestByteLimit", requestByteLimit,
            "1024 to \(1 << 30)")
        try require(
            bufferBytes >= requestByteLimit, "bufferBytes", bufferBytes,
            "requestByteLimit (\(requestByteLimit)) or more")
        try require(retryLimit >= 0, "retryLimit", retryLimit, "zero or more")
        switch compression {
        case .gzip(let level?):
            try require((1...9).contains(level), "compression gzip level", level, "1 to 9")
        case .zstd(let level?):
            try require((1...22).contains(level), "compression zstd level", level, "1 to 22")
        case .none, .gzip, .snappy, .lz4, .zstd: break
        }
    }
}
