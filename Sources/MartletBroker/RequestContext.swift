internal import Logging
package import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
package import MartletTransport
package import NIOCore

/// What belongs to one connection beyond its bytes. Confined to the connection's loop.
package final class ConnectionState {
    /// The incremental fetch session of the connection (KIP-227). A client uses one connection per broker for
    /// fetching, so a session ends with its connection and needs no cache shared between loops.
    package var fetchSession: FetchSession?
    package var fetches: [FetchRequestState] = []
    /// Share sessions of the connection, and share fetches that wait (KIP-932).
    package var shareSessions: [ShareSessionKey: ShareSession] = [:]
    package var shareFetches: [ShareFetchState] = []
    package var produceGate = ProduceGate()
    /// Of the last request.
    package var clientID: String?
    /// The run of a broker whose heartbeats come over this connection.
    var heartbeats: (broker: BrokerID, epoch: Int64)?
    /// Where the last Produce request went.
    package var lastRoute: ProduceRoute?
    /// See ``RequestContext/noteHome(_:)``.
    var awayCount = 0
    var moveCount = 0
}

/// One request on its way through a handler: where it came from, and how to answer it.
///
/// Used on the connection's loop. Work that finishes elsewhere hands a future to ``respond(when:)``.
package struct RequestContext {
    package let header: RequestHeader
    package let ticket: UInt64
    package let connection: ServerConnection
    package let state: ConnectionState
    package let loop: BrokerLoop

    package var version: Int16 { header.apiVersion }
    package var image: MetadataImage { loop.image }
    package var services: BrokerServices { loop.services }

    /// Answers with `response`, in the request's version.
    package func respond(_ response: some KafkaResponse) {
        do throws(EncodeError) {
            connection.respond(to: ticket, .buffer(try ResponseFrame.encode(response, for: header)))
        } catch {
            // Our own value does not fit the version the client chose: a bug of a handler. The client cannot
            // be answered in that version, so the connection ends instead of hanging.
            loop.logger.error(
                "response cannot be encoded",
                metadata: ["api": "\(header.apiKey)", "version": "\(version)", "cause": "\(error)"])
            connection.respond(to: ticket, .close)
        }
    }

    package func respond(with raw: ServerResponse) { connection.respond(to: ticket, raw) }

    /// Answers with the future's value. A failure is a bug (cores answer with codes) and closes the connection.
    package func respond<Response: KafkaResponse & Sendable>(when future: EventLoopFuture<Response>) {
        future.hop(to: loop.eventLoop).assumeIsolated().whenComplete { result in
            switch result {
            case .success(let response):
                self.respond(response)
            case .failure(let error):
                self.loop.logger.error(
                    "request failed", metadata: ["api": "\(self.header.apiKey)", "cause": "\(error)"])
                self.respond(with: .close)
            }
        }
    }

    /// The request cannot be understood or served: one log line, and the connection is closed.
    package func reject(_ cause: String) {
        connection.reject(
            "\(header.apiKey) version \(version) from client '\(header.clientID ?? "")': \(cause)")
    }
}

/// Cuts whole responses: length prefix, header, body.
package enum ResponseFrame {
    package static func encode(_ response: some KafkaResponse, for header: RequestHeader) throws(EncodeError) -> ByteBuffer {
        var writer = ProtocolWriter()
        try write(response, for: header, into: &writer)
        return writer.buffer
    }

    /// Writes into `writer`, whose buffer must be empty. The length prefix counts what the buffer holds; parts
    /// that are sent beside it are added by the caller through `extraByteCount`.
    package static func write(
        _ response: some KafkaResponse, for header: RequestHeader, into writer: inout ProtocolWriter,
        extraByteCount: Int = 0
    ) throws(EncodeError) {
        writer.buffer.writeInteger(Int32(0))
        ResponseHeader(correlationID: header.correlationID).encode(
            into: &writer, apiKey: header.apiKey, version: header.apiVersion)
        try response.encode(into: &writer, version: header.apiVersion)
        writer.buffer.setInteger(Int32(writer.buffer.readableBytes - 4 + extraByteCount), at: 0)
    }
}
