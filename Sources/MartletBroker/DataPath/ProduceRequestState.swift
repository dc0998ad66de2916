package import MartletLogModel
package import MartletRecordBatch
package import NIOCore

/// One partition's batch of a Produce request on its way to the log.
package struct ProduceItem {
    /// Position of the result in the request.
    package var index: Int
    package var key: PartitionKey
    package var batch: ByteBuffer
    package var header: RecordBatchHeader
    /// Set where the batch is part of a transaction.
    package var transaction: ProduceTransaction?
}

/// Outcome of one partition of a Produce request.
package struct ProduceResult: Sendable {
    package var error: ErrorCode = .none
    package var message: String?
    package var baseOffset: Int64 = -1
    package var logAppendTime: Int64 = -1
    package var logStartOffset: Int64 = -1
    /// Set with NOT_LEADER_OR_FOLLOWER: who leads instead (KIP-951).
    package var leader: (id: Int32, epoch: Int32)?
    /// Indexes of records that were the reason of a rejection (KIP-467).
    package var recordErrors: [(index: Int32, message: String)] = []

    package init() {}

    package init(error: ErrorCode, message: String?) {
        self.error = error
        self.message = message
    }
}

package struct ProduceCompletion: Sendable {
    package var request: ProduceRequestState
    package var index: Int
    package var result: ProduceResult
}

/// A Produce request between its arrival and its answer: collects one result per partition.
// SAFETY: mutable state is touched on `loop`, the connection's loop, alone. Partitions on other loops carry
// the reference and read the immutable fields.
package final class ProduceRequestState: @unchecked Sendable {
    package let loop: BrokerLoop
    package let acks: Int16
    package let deadline: NIODeadline
    private var results: [ProduceResult]
    private var missing: Int
    private let finish: ([ProduceResult]) -> Void

    /// - Parameter finish: called once on `loop`, with the results in the order of the request.
    package init(
        loop: BrokerLoop, acks: Int16, deadline: NIODeadline, partitionCount: Int,
        finish: @escaping ([ProduceResult]) -> Void
    ) {
        self.loop = loop
        self.acks = acks
        self.deadline = deadline
        self.results = Array(repeating: ProduceResult(), count: partitionCount)
        self.missing = partitionCount
        self.finish = finish
    }

    package func complete(_ completion: ProduceCompletion) {
        results[completion.index] = completion.result
        missing -= 1
        precondition(missing >= 0, "a produce request got more results than it has partitions")
        if missing == 0 { finish(results) }
    }
}

/// Batches on their way to another loop.
// SAFETY: values, handed over whole: the sender keeps nothing, so the bytes have one owner throughout.
struct ForwardedProduce: @unchecked Sendable {
    var items: [ProduceItem]
    var request: ProduceRequestState
}
