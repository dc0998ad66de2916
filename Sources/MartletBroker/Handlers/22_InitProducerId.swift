internal import Logging
internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore
internal import Synchronization

/// InitProducerId (key 22): ids for idempotent producers, out of blocks that the controller hands out durably, so that
/// no id is given twice, not even after a crash (KIP-98, KIP-730).
///
/// An id and epoch that the producer has already count for transactional ids alone (KIP-360): nothing here could tell
/// whether they are the latest. Transactional ids need the transaction coordinator, which this release does not have.
package enum InitProducerIDHandler {
    package static func handle(_ request: InitProducerIdRequest, _ context: RequestContext) {
        guard request.transactionalID == nil else {
            var response = InitProducerIdResponse()
            context.loop.logger.warning(
                "transactional producer refused",
                metadata: [
                    "client": "\(context.header.clientID ?? "")",
                    "cause": "transactions are not served by this release; unset transactional.id",
                ])
            response.errorCode = ErrorCode.transactionalIDAuthorizationFailed.rawValue
            context.respond(response)
            return
        }
        let id = context.services.producerIDs.next(controller: context.services.controller, on: context.loop.eventLoop)
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

/// Hands out producer ids from the broker's current block and fetches the next block when it is used up.
/// What a crash leaves of a block is never used.
package final class ProducerIDBlocks: Sendable {
    private struct State {
        var next: Int64 = 0
        /// Exclusive.
        var end: Int64 = 0
    }

    private let state = Mutex(State())

    package init() {}

    package func next(controller: ControllerShell, on eventLoop: any EventLoop) -> EventLoopFuture<Int64> {
        if let id = take() { return eventLoop.makeSucceededFuture(id) }
        return controller.allocateProducerIDs().hop(to: eventLoop).flatMap { block in
            // Two loops may have asked at once: the later block then continues where the earlier one is used up.
            self.state.withLock { state in
                if state.next >= state.end { state = State(next: block.lowerBound, end: block.upperBound) }
            }
            return self.next(controller: controller, on: eventLoop)
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

extension ControllerShell {
    /// A fresh block of producer ids for this broker.
    package func allocateProducerIDs() -> EventLoopFuture<Range<Int64>> {
        let node = nodeID
        return submit { core in
            var request = AllocateProducerIdsRequest()
            request.brokerID = node.rawValue
            request.brokerEpoch = core.image.broker(node)?.epoch ?? -1
            return core.decide(request)
        }.flatMapThrowing { (response: AllocateProducerIdsResponse) in
            guard response.errorCode == 0 else {
                throw MetadataLogError(
                    description: "no producer ids: \(ErrorCode(rawValue: response.errorCode).name)")
            }
            return response.producerIDStart..<response.producerIDStart + Int64(response.producerIDLen)
        }
    }
}
