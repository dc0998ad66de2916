internal import MartletCoordinators
package import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// EndTxn (key 26). Version 2 knows PRODUCER_FENCED; 5 raises the epoch with every end and says which identity the
/// producer goes on with (KIP-890).
package enum EndTxnHandler {
    package static func handle(_ request: EndTxnRequest, _ context: RequestContext) {
        let version = context.version
        context.respond(
            when: context.coordinate(
                .end(
                    transactionalID: request.transactionalID,
                    producer: ProducerIdentity(id: request.producerID, epoch: request.producerEpoch),
                    commits: request.committed, under: version >= 5 ? .second : .first)
            ).map { response -> EndTxnResponse in
                guard case .ended(let producer, let code) = response else { return response.mismatch() }
                var answer = EndTxnResponse()
                answer.errorCode =
                    (version < 2 && code == .producerFenced ? .invalidProducerEpoch : code).rawValue
                answer.producerID = producer?.id ?? -1
                answer.producerEpoch = producer?.epoch ?? -1
                return answer
            })
    }
}
