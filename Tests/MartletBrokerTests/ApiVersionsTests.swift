import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@Suite(.timeLimit(.minutes(2))) struct ApiVersionsTests {
    @Test func `an unknown version of ApiVersions is answered with error 35 in the form of version 0`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            var frame = ByteBuffer()
            frame.writeInteger(Int32(0))
            frame.writeInteger(APIKey.apiVersions.rawValue)
            frame.writeInteger(Int16(99))
            frame.writeInteger(Int32(7))
            frame.writeInteger(Int16(-1))
            frame.writeInteger(UInt8(0))
            frame.setInteger(Int32(frame.readableBytes - 4), at: 0)
            client.send(frame)
            let response = try client.read(ApiVersionsResponse.self, version: 0)
            #expect(response.errorCode == ErrorCode.unsupportedVersion.rawValue)
            #expect(response.apiKeys.map(\.apiKey) == [APIKey.apiVersions.rawValue])
            #expect(response.apiKeys.first?.maxVersion == 4)
            // The connection lives on and the client falls back.
            #expect(try client.call(ApiVersionsRequest(), version: 0).errorCode == 0)
        }
    }

    /// Under this name other brokers ask, who see what clients do not.
    private static let peer = "martlet-broker-7"

    @Test func `what controllers say to each other is not for clients`() async throws {
        try await withBroker { broker in
            let versions = try WireClient(port: broker.address.port).call(ApiVersionsRequest(), version: 0)
            #expect(!versions.apiKeys.contains { $0.apiKey == APIKey.vote.rawValue })
            #expect(versions.apiKeys.contains { $0.apiKey == APIKey.describeQuorum.rawValue })
            #expect(throws: WireClient.Failure.self) { try WireClient(port: broker.address.port).call(VoteRequest()) }
            let peer = try WireClient(port: broker.address.port, clientID: Self.peer)
            let told = try peer.call(ApiVersionsRequest(), version: 0)
            #expect(told.apiKeys.contains { $0.apiKey == APIKey.vote.rawValue })
            #expect(try peer.call(VoteRequest()).topics.isEmpty)
        }
    }

    /// A request with all fields at their defaults makes little sense, but each served key must answer it in
    /// every version it advertises, with a code of its own choice, instead of closing the connection.
    @Test func `every advertised key and version is answered`() async throws {
        try await withBroker { broker in
            // Produce with acks 0, its default, has no answer; ProduceFetchTests covers it.
            for served in ServedAPI.all where served.key != .produce {
                for version in served.advertised where served.key.isKnown(version) {
                    if served.key == .apiVersions && version >= 3 { continue }
                    let client = try WireClient(port: broker.address.port)
                    var writer = ProtocolWriter()
                    writer.buffer.writeInteger(Int32(0))
                    try RequestHeader(apiKey: served.key, apiVersion: version, correlationID: 42, clientID: Self.peer)
                        .encode(into: &writer)
                    try served.encodeDefaultRequest(into: &writer, version: version)
                    writer.buffer.setInteger(Int32(writer.buffer.readableBytes - 4), at: 0)
                    client.send(writer.buffer)
                    var prefix = try client.receive(8)
                    let length = prefix.readInteger(as: Int32.self)
                    let correlationID = prefix.readInteger(as: Int32.self)
                    #expect(correlationID == 42 && length ?? 0 >= 4, "\(served.key) version \(version)")
                }
            }
        }
    }
}
