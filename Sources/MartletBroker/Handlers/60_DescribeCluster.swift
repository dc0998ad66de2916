internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel

/// DescribeCluster (key 60). Version 1 adds the endpoint type (1 brokers, 2 controllers, KIP-919), 2 fenced brokers.
package enum DescribeClusterHandler {
    private static let brokerEndpoints: Int8 = 1

    package static func handle(_ request: DescribeClusterRequest, _ context: RequestContext) {
        var response = DescribeClusterResponse()
        response.endpointType = request.endpointType
        guard request.endpointType == brokerEndpoints else {
            response.errorCode = ErrorCode.mismatchedEndpointType.rawValue
            response.errorMessage = "this listener serves brokers (endpoint type 1), not controllers"
            context.respond(response)
            return
        }
        response.clusterID = context.image.clusterID?.description ?? ""
        response.controllerID = context.controllerID
        if request.includeClusterAuthorizedOperations {
            response.clusterAuthorizedOperations = AuthorizedOperations.cluster
        }
        for broker in context.image.brokers where !broker.isFenced || request.includeFencedBrokers {
            var entry = DescribeClusterResponse.DescribeClusterBroker()
            let address = context.address(of: broker.id)
            entry.brokerID = broker.id.rawValue
            entry.host = address?.host ?? ""
            entry.port = Int32(address?.port ?? 0)
            entry.rack = broker.rack
            entry.isFenced = broker.isFenced
            response.brokers.append(entry)
        }
        context.respond(response)
    }
}
