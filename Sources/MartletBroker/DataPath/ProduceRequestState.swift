package import MartletKafkaProtocol
package import MartletLogModel
package import MartletRecordBatch
internal import MartletTransport
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

/// Outcome of one partition of a Produce request. Success carries no references: it passes through several
/// hands for each small batch.
package enum ProduceResult: Sendable {
    /// -1 where a value is unknown or does not apply.
    case appended(baseOffset: Int64, logAppendTime: Int64, logStartOffset: Int64)
    case refused(ProduceRefusal)

    package init(error: ErrorCode, message: String?) {
        self = .refused(ProduceRefusal(error: error, message: message))
    }

    /// `nil` for success.
    package var refusal: ProduceRefusal? {
        switch self {
        case .appended: nil
        case .refused(let refusal): refusal
        }
    }
}

/// Why a batch was not appended, or is not acknowledged.
package final class ProduceRefusal: Sendable {
    package let error: ErrorCode
    package let message: String?
    /// Set with NOT_LEADER_OR_FOLLOWER: who leads instead (KIP-951).
    package let leader: (id: Int32, epoch: Int32)?
    /// Indexes of records that were the reason of a rejection (KIP-467).
    package let recordErrors: [(index: Int32, message: String)]

    package init(
        error: ErrorCode, message: String?, leader: (id: Int32, epoch: Int32)? = nil,
        recordErrors: [(index: Int32, message: String)] = []
    ) {
        precondition(error != .none, "a refusal has an error")
        self.error = error
        self.message = message
        self.leader = leader
        self.recordErrors = recordErrors
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
    package enum Shape {
        case single(SinglePartitionProduce)
        case many(ProduceRequest)
    }

    package let context: RequestContext
    package let shape: Shape
    package let acks: Int16
    package let deadline: NIODeadline
    /// Empty for a request with one partition, which is answered as soon as its result is there.
    private var results: [ProduceResult] = []
    private var missing: Int

    package var loop: BrokerLoop { context.loop }

    package init(single request: SinglePartitionProduce, _ context: RequestContext) {
        var request = request
        // The batch has its own way; kept here it would live as long as the request waits.
        request.records = nil
        self.context = context
        self.shape = .single(request)
        self.acks = request.acks
        self.deadline = Self.deadline(request.timeoutMs, context)
        self.missing = 1
    }

    package init(_ request: ProduceRequest, partitionCount: Int, _ context: RequestContext) {
        self.context = context
        self.shape = .many(request)
        self.acks = request.acks
        self.deadline = Self.deadline(request.timeoutMs, context)
        self.results = Array(repeating: .appended(baseOffset: -1, logAppendTime: -1, logStartOffset: -1), count: partitionCount)
        self.missing = partitionCount
    }

    private static func deadline(_ timeoutMs: Int32, _ context: RequestContext) -> NIODeadline {
        context.connection.lastActivity + .milliseconds(Int64(max(0, timeoutMs)))
    }

    package func complete(_ completion: ProduceCompletion) {
        missing -= 1
        precondition(missing >= 0, "a produce request got more results than it has partitions")
        switch shape {
        case .single(let request):
            ProduceHandler.answer(request, completion.result, context)
        case .many(let request):
            results[completion.index] = completion.result
            if missing == 0 { ProduceHandler.answer(request, results, context) }
        }
    }
}

/// Batches on their way to another loop.
// SAFETY: values, handed over whole: the sender keeps nothing, so the bytes have one owner throughout.
struct ForwardedProduce: @unchecked Sendable {
    var item: ProduceItem
    var request: ProduceRequestState
}
