internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel

/// ApiVersions (key 18). Answers any version: one above ours gets error 35 and our range in the body of
/// version 0 (KIP-511). Lists the keys that ``ServedAPI`` dispatches, and no others.
package enum ApiVersionsHandler {
    /// Longest client name and version; both must match Kafka's pattern (KIP-511).
    private static let softwareNameLimit = 128

    package static func handle(_ request: ApiVersionsRequest, _ context: RequestContext) {
        if context.version >= 3 {
            guard isSoftwareName(request.clientSoftwareName), isSoftwareName(request.clientSoftwareVersion) else {
                var response = ApiVersionsResponse()
                response.errorCode = ErrorCode.invalidRequest.rawValue
                context.respond(response)
                return
            }
        }
        context.respond(
            response(
                version: context.version, image: context.image, isPeer: PeerClientID.isPeer(context.header.clientID)))
    }

    /// The answer to a version we do not speak: error 35 in the form of version 0, with every range, as the
    /// client falls back by the entry of this very key.
    package static func unsupported(_ header: RequestHeader) -> (ApiVersionsResponse, RequestHeader) {
        var response = ApiVersionsResponse()
        response.errorCode = ErrorCode.unsupportedVersion.rawValue
        var entry = ApiVersionsResponse.ApiVersion()
        entry.apiKey = APIKey.apiVersions.rawValue
        entry.minVersion = ApiVersionsRequest.versions.lowerBound
        entry.maxVersion = ApiVersionsRequest.versions.upperBound
        response.apiKeys = [entry]
        var downgraded = header
        downgraded.apiVersion = 0
        return (response, downgraded)
    }

    /// - Parameter isPeer: another node of the cluster asks. Clients go by what a released broker shows them, so they see
    ///   nothing of what controllers say to each other.
    private static func response(version: Int16, image: MetadataImage, isPeer: Bool) -> ApiVersionsResponse {
        var response = ApiVersionsResponse()
        response.apiKeys = ServedAPI.all.filter { isPeer || !$0.key.isOfControllers }.map { served in
            var entry = ApiVersionsResponse.ApiVersion()
            entry.apiKey = served.key.rawValue
            entry.minVersion = served.advertised.lowerBound
            entry.maxVersion = served.advertised.upperBound
            return entry
        }
        response.finalizedFeaturesEpoch = image.lastOffset?.rawValue ?? -1
        for range in Features.supported where version >= 4 || range.minimum > 0 {
            // Clients of versions below 4 cannot take a minimum of 0 (KAFKA-17011).
            var entry = ApiVersionsResponse.SupportedFeatureKey()
            entry.name = range.name
            entry.minVersion = range.minimum
            entry.maxVersion = range.maximum
            response.supportedFeatures.append(entry)
        }
        for feature in image.features where feature.level > 0 {
            var entry = ApiVersionsResponse.FinalizedFeatureKey()
            entry.name = feature.name
            entry.maxVersionLevel = feature.level
            entry.minVersionLevel = feature.level
            response.finalizedFeatures.append(entry)
        }
        return response
    }

    private static func isSoftwareName(_ text: String) -> Bool {
        guard let first = text.utf8.first, let last = text.utf8.last, text.utf8.count <= softwareNameLimit else {
            return false
        }
        func isAlphanumeric(_ byte: UInt8) -> Bool {
            (0x30...0x39).contains(byte) || (0x41...0x5a).contains(byte) || (0x61...0x7a).contains(byte)
        }
        return isAlphanumeric(first) && isAlphanumeric(last)
            && text.utf8.allSatisfy { isAlphanumeric($0) || $0 == 0x2d || $0 == 0x2e }
    }
}
