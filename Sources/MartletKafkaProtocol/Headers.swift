/// Framing of the protocol: every request and response is a big-endian `Int32` length, then that many bytes.
package enum Framing {
    /// Bytes of the length in front of each frame.
    package static let lengthBytes = 4
    /// Kafka's default for `socket.request.max.bytes`: the largest request a broker takes.
    package static let defaultRequestBytesLimit = 100 * 1024 * 1024
    /// Memory that the arrays and texts of one request may take. Some 150,000 partitions fit into one Fetch; byte
    /// strings, and so records, are not counted.
    package static let decodedRequestBytesLimit = 16 * 1024 * 1024
    /// Smallest request: API key, version, correlation id, null client id.
    package static let smallestRequestBytes = 10
}

/// What precedes the body of a request. Header version 1 before the API's flexible versions, 2 from then on
/// (KIP-482); the client id keeps its 16-bit length in both.
package struct RequestHeader: Hashable, Sendable {
    package var apiKey: APIKey
    package var apiVersion: Int16
    /// Chosen by the client and returned with the response; responses come in the order of the requests.
    package var correlationID: Int32
    package var clientID: String?

    package init(apiKey: APIKey, apiVersion: Int16, correlationID: Int32, clientID: String?) {
        self.apiKey = apiKey
        self.apiVersion = apiVersion
        self.correlationID = correlationID
        self.clientID = clientID
    }

    /// Of an unknown API, or of a version above the known ones, only the part common to all header versions
    /// is read: the tagged fields, if there are any, cannot be told from the body.
    ///
    /// - Parameter clientID: of the connection's request before, which is likely to be this one's.
    package init(reading r: inout ProtocolReader, expecting clientID: String? = nil) throws(DecodeError) {
        let (key, version): (Int16, Int16) = try r.integers()
        apiKey = APIKey(rawValue: key)
        apiVersion = version
        correlationID = try r.integer()
        self.clientID = try r.nullableString(false, expecting: clientID ?? "")
        if apiKey.isKnown(apiVersion), apiKey.isFlexible(apiVersion) { try r.skipTaggedFields() }
    }

    package func encode(into w: inout ProtocolWriter) throws(EncodeError) {
        w.integer(apiKey.rawValue)
        w.integer(apiVersion)
        w.integer(correlationID)
        try w.nullableString(clientID, false)
        if apiKey.isFlexible(apiVersion) { w.unsignedVarint(0) }
    }
}

/// What precedes the body of a response. Header version 0 is the correlation id; version 1, for flexible
/// versions of the API, adds tagged fields.
package struct ResponseHeader: Hashable, Sendable {
    package var correlationID: Int32

    package init(correlationID: Int32) { self.correlationID = correlationID }

    package init(reading r: inout ProtocolReader, flexible: Bool) throws(DecodeError) {
        correlationID = try r.integer()
        if flexible { try r.skipTaggedFields() }
    }

    package init(reading r: inout ProtocolReader, apiKey: APIKey, version: Int16) throws(DecodeError) {
        try self.init(reading: &r, flexible: apiKey.hasFlexibleResponseHeader(version))
    }

    package func encode(into w: inout ProtocolWriter, flexible: Bool) {
        w.integer(correlationID)
        if flexible { w.unsignedVarint(0) }
    }

    package func encode(into w: inout ProtocolWriter, apiKey: APIKey, version: Int16) {
        encode(into: &w, flexible: apiKey.hasFlexibleResponseHeader(version))
    }
}

extension APIKey {
    /// Whether this version of the API's messages is known here. Produce 0 to 2 are advertised, for old
    /// librdkafka, but not known.
    package func isKnown(_ version: Int16) -> Bool { versions?.contains(version) ?? false }

    package func isFlexible(_ version: Int16) -> Bool {
        guard let first = firstFlexibleVersion else { return false }
        return version >= first
    }

    /// Responses to ApiVersions have header version 0 for ever: the client that reads one may not know yet
    /// which versions the broker speaks (KIP-511).
    package func hasFlexibleResponseHeader(_ version: Int16) -> Bool {
        self != .apiVersions && isFlexible(version)
    }
}
