internal import Logging
internal import MartletController
internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// InitProducerId (key 22): ids for idempotent producers, out of blocks that the controller hands out durably, so that
/// no id is given twice, not even after a crash (KIP-98, KIP-730).
///
/// An id and epoch that the producer has already count for transactional ids alone (KIP-360): nothing here could tell
/// whether they are the latest. Transactional ids are the transaction coordinator's.
package enum InitProducerIDHandler {
    package static func handle(_ request: InitProducerIdRequest, _ context: RequestContext) {
        if let transactionalID = request.transactionalID {
            return initialize(transactionalID, request, context)
        }
        let id = context.services.producerIDs.next(services: context.services, on: context.loop.eventLoop)
        context.respond(
            when: id.map { id in
                var response = InitProducerIdResponse()
                response.producerID = id
                response.producerEpoch = 0
                return response
            }.flatMapErrorThrowing { _ in
                var response = InitProducerIdResponse()
                // Retriable: the client asks again, the controller may be back then.
                response.errorCode = ErrorCode.coordinatorNotAvailable.rawValue
                return response
            })
    }
}

extension InitProducerIDHandler {
    private static func initialize(
        _ transactionalID: String, _ request: InitProducerIdRequest, _ context: RequestContext
    ) {
        @Sendable func respond(_ producer: ProducerIdentity?, _ code: ErrorCode) -> InitProducerIdResponse {
            var response = InitProducerIdResponse()
            response.errorCode = code.rawValue
            response.producerID = producer?.id ?? -1
            response.producerEpoch = producer?.epoch ?? -1
            return response
        }
        // Both or neither: one alone says nothing (KIP-360).
        guard (request.producerID >= 0) == (request.producerEpoch >= 0) else {
            return context.respond(respond(nil, .invalidRequest))
        }
        let expected =
            request.producerID >= 0
            ? ProducerIdentity(id: request.producerID, epoch: request.producerEpoch) : nil
        let (version, logger) = (context.version, context.loop.logger)
        let (timeout, client) = (request.transactionTimeoutMs, context.header.clientID ?? "")
        context.respond(
            when: context.coordinate(
                .initialize(transactionalID: transactionalID, timeoutMilliseconds: timeout, expected: expected)
            ).map { response -> InitProducerIdResponse in
                guard case .initialized(let producer, let code) = response else { return response.mismatch() }
                if code == .invalidTransactionTimeout {
                    logger.warning(
                        "transactional producer refused",
                        metadata: [
                            "client": "\(client)",
                            "cause": "transaction.timeout.ms \(timeout) is not within transaction.max.timeout.ms",
                        ])
                }
                return respond(producer, version < 4 && code == .producerFenced ? .invalidProducerEpoch : code)
            })
    }
}

/// Hands out producer ids from the broker's current block and fetches the next block when it is used up.
/// What a crash leaves of a block is never used.
package final class ProducerIDBlocks: Sendable {
    private struct State {
        var next: Int64 = 0
        /// Exclusive.
        var end: Int64 = 0
    }

    private let state = Guarded(State())

    package init() {}

    package func next(services: BrokerServices, on eventLoop: any EventLoop) -> EventLoopFuture<Int64> {
        if let id = take() { return eventLoop.makeSucceededFuture(id) }
        return services.allocateProducerIDs(on: eventLoop).flatMap { block in
            // Two loops may have asked at once: the later block then continues where the earlier one is used up.
            self.state.withLock { state in
                if state.next >= state.end { state = State(next: block.lowerBound, end: block.upperBound) }
            }
            return self.next(services: services, on: eventLoop)
        }
    }

    private func take() -> Int64? {
        state.withLock { state in
            guard state.next < state.end else { return nil }
            state.next += 1
            return state.next - 1
        }
    }
}

extension BrokerServices {
    /// Longest wait for the controller.
    private static let allocationLimit: TimeAmount = .seconds(5)

    /// A fresh block of producer ids for this broker.
    fileprivate func allocateProducerIDs(on eventLoop: any EventLoop) -> EventLoopFuture<Range<Int64>> {
        var request = AllocateProducerIdsRequest()
        request.brokerID = settings.nodeID.rawValue
        request.brokerEpoch = brokerEpoch
        return controllerChannel.send(request, timeout: Self.allocationLimit, on: eventLoop).flatMapThrowing { (response: AllocateProducerIdsResponse) in
            guard response.errorCode == 0 else {
                throw MetadataLogError(
                    description: "no producer ids: \(ErrorCode(rawValue: response.errorCode).name)")
            }
            return response.producerIDStart..<response.producerIDStart + Int64(response.producerIDLen)
        }
    }
}
