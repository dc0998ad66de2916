import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@testable import MartletClient

/// Bytes that no broker should send: a clear error, never a trap, never memory beyond the limit.
@Suite(.timeLimit(.minutes(2))) struct HostileBrokerTests {
    private func admin(_ broker: FakeBroker, requestTimeout: Duration) throws -> Admin {
        var configuration = try ClientConfiguration(bootstrap: broker.bootstrap)
        configuration.retryBackoff = .milliseconds(5)
        configuration.reconnectBackoff = .milliseconds(5)
        configuration.requestTimeout = requestTimeout
        configuration.operationTimeout = requestTimeout * 3
        configuration.responseByteLimit = 1 << 20
        return try Admin(configuration)
    }

    /// Patient, because a loaded machine must not turn a wrong answer into a late one.
    private func failure(
        requestTimeout: Duration = .seconds(20), _ prepare: (FakeBroker) -> Void
    ) async throws -> ClientError? {
        let broker = try await FakeBroker.start()
        prepare(broker)
        let admin = try admin(broker, requestTimeout: requestTimeout)
        var failure: ClientError?
        do {
            _ = try await admin.describeCluster()
        } catch let error as ClientError {
            failure = error
        }
        await admin.close()
        try await broker.stop()
        return failure
    }

    private func bytes(_ values: [UInt8]) -> ByteBuffer { ByteBuffer(bytes: values) }

    @Test(
        arguments: [
            [0x7f, 0xff, 0xff, 0xff], [0xff, 0xff, 0xff, 0xff], [0, 0, 0, 0], [0, 0, 0, 3, 1, 2, 3],
            [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46],
        ] as [[UInt8]])
    func `a wrong frame length ends the connection with both limits named`(frame: [UInt8]) async throws {
        let error = try #require(await failure { $0.always(.metadata, .bytes(bytes(frame))) })
        #expect(error.message.contains("frame length"))
    }

    @Test func `an answer to another request ends the connection`() async throws {
        let error = try #require(
            await failure { $0.always(.metadata, .bytes(bytes([0, 0, 0, 5, 0x7f, 0, 0, 1, 0]))) })
        #expect(error.code == .protocolViolation)
        #expect(error.message.contains("answer to request"))
    }

    @Test func `an answer that lies about a count is refused without allocating for it`() async throws {
        let error = try #require(
            await failure { broker in
                broker.always(
                    .metadata,
                    .answer { header in
                        var buffer = ByteBuffer()
                        buffer.writeInteger(Int32(14))
                        buffer.writeInteger(header.correlationID)
                        buffer.writeBytes([0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x07])
                        return buffer
                    })
            })
        #expect(error.code == .protocolViolation)
        #expect(error.message.contains("Metadata"))
    }

    @Test func `every prefix of a right answer is refused`() async throws {
        var response = MetadataResponse()
        var broker = MetadataResponse.MetadataResponseBroker()
        (broker.nodeID, broker.host, broker.port) = (1, "h", 1)
        response.brokers = [broker]
        response.clusterID = "c"
        let whole = try response.frame(version: 13, correlationID: 0)
        for length in stride(from: 5, to: whole.readableBytes - 4, by: 3) {
            let error = try #require(
                await failure { fake in
                    fake.always(
                        .metadata,
                        .answer { header in
                            var buffer = ByteBuffer()
                            buffer.writeInteger(Int32(length))
                            buffer.writeInteger(header.correlationID)
                            var body = whole
                            body.moveReaderIndex(forwardBy: 8)
                            buffer.writeImmutableBuffer(body.readSlice(length: length - 4)!)
                            return buffer
                        })
                })
            #expect(error.code == .protocolViolation)
        }
    }

    @Test func `silence ends with the request and its limit named`() async throws {
        let error = try #require(
            await failure(requestTimeout: .milliseconds(300)) { $0.always(.metadata, .silence) })
        #expect(error.message.contains("Metadata") && error.message.contains("300 ms"))
    }

    @Test func `silence at the handshake is an unreachable broker`() async throws {
        let fake = try await FakeBroker.start()
        fake.always(.apiVersions, .silence)
        var configuration = try ClientConfiguration(bootstrap: fake.bootstrap)
        configuration.connectTimeout = .milliseconds(200)
        configuration.operationTimeout = .milliseconds(500)
        let admin = try Admin(configuration)
        await #expect { try await admin.describeCluster() } throws: { error in
            (error as? ClientError)?.code == .brokersUnreachable
        }
        await admin.close()
        try await fake.stop()
    }

    @Test func `random bytes never trap`() async throws {
        var generator = SplitMix(state: 7)
        for _ in 0..<60 {
            let junk = (0..<Int.random(in: 1...300, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            let hasHeader = Bool.random(using: &generator)
            let error = try await failure { fake in
                fake.always(
                    .metadata,
                    .answer { header in
                        var buffer = ByteBuffer()
                        if hasHeader {
                            buffer.writeInteger(Int32(junk.count + 4))
                            buffer.writeInteger(header.correlationID)
                        }
                        buffer.writeBytes(junk)
                        return buffer
                    })
            }
            #expect(error != nil)
        }
    }

    @Test func `a broker without a common version is named with both ranges`() async throws {
        let error = try #require(await failure { $0.serve(.metadata, 90...99) })
        #expect(error.code == .unsupportedByBroker)
        #expect(error.message.contains("90 to 99") && error.message.contains("0 to 13"))
    }

    @Test func `the second bootstrap broker is used when the first is down`() async throws {
        let down = try await FakeBroker.start()
        let address = down.bootstrap
        try await down.stop()
        let up = try await FakeBroker.start()
        let admin = try Admin(try ClientConfiguration(bootstrap: "\(address),\(up.bootstrap)"))
        for _ in 0..<5 { #expect(try await admin.describeCluster().clusterID == "fake") }
        await admin.close()
        try await up.stop()
    }
}
