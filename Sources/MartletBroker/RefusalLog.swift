internal import Logging
internal import MartletCoordinators
internal import MartletKafkaProtocol
package import MartletLogModel
internal import NIOCore

/// Refused requests in the log: one line each, with code, cause and remedy. A client that goes on being wrong must not
/// fill the log, so lines beyond a limit are counted, and the count is told. Confined to a loop.
package struct RefusalLog {
    /// Lines of one loop within ``window``.
    package static let lineLimit = 20
    private static let window: TimeAmount = .seconds(1)
    /// Characters of a client's words in a line: group ids, for one, may be 32 KiB.
    private static let wordLengthLimit = 200

    private var windowEnd = NIODeadline.uptimeNanoseconds(0)
    private var lineCount = 0
    private var omittedCount = 0

    package init() {}

    /// - Parameter about: what the request was about, in the client's words.
    mutating func log(
        _ code: ErrorCode, _ cause: String?, client: String?, about: [(String, String)], now: NIODeadline,
        _ logger: Logger
    ) {
        if now >= windowEnd {
            tellOmitted(now: now, logger)
            windowEnd = now + Self.window
            lineCount = 0
        }
        guard lineCount < Self.lineLimit else {
            omittedCount += 1
            return
        }
        lineCount += 1
        var metadata: Logger.Metadata = [
            "client": "\(Self.shortened(client ?? ""))", "code": "\(code.name)",
            "cause": "\(Self.shortened(cause ?? code.text))",
        ]
        if !code.remedy.isEmpty { metadata["remedy"] = "\(code.remedy)" }
        for (name, value) in about { metadata[name] = "\(Self.shortened(value))" }
        logger.info("request refused", metadata: metadata)
    }

    /// Says how many lines were left out, once their window is over.
    mutating func tellOmitted(now: NIODeadline, _ logger: Logger) {
        guard omittedCount > 0, now >= windowEnd else { return }
        logger.info("more requests refused", metadata: ["count": "\(omittedCount)"])
        omittedCount = 0
    }

    private static func shortened(_ text: String) -> String {
        // By scalars: a character may have any number of them.
        let scalars = text.unicodeScalars
        guard let end = scalars.index(scalars.startIndex, offsetBy: wordLengthLimit, limitedBy: scalars.endIndex),
            end < scalars.endIndex
        else { return text }
        return String(scalars[..<end]) + "…"
    }
}

extension ErrorCode {
    /// Whether a request that is refused with this code is worth a line: not what clients meet on their ordinary way
    /// and get over by themselves.
    package var isWorthALine: Bool {
        switch self {
        case .none, .memberIDRequired, .rebalanceInProgress, .operationNotAttempted: false
        case _: !isRetriable
        }
    }
}

extension RequestContext {
    func logRefusal(of request: GroupRequest, _ response: GroupResponse) {
        guard let refusal = response.refusal, refusal.code.isWorthALine, let subject = request.subject else { return }
        loop.logRefusal(
            refusal.code, refusal.message, client: header.clientID,
            about: [("api", "\(header.apiKey)"), ("group", subject.group), ("member", subject.member)])
    }

    func logRefusal(of request: TransactionRequest, _ response: TransactionResponse) {
        guard let code = response.refusal, code.isWorthALine, let id = request.transactionalID else { return }
        // InitProducerId says itself what is wrong with a time-out.
        guard code != .invalidTransactionTimeout else { return }
        var about = [("api", "\(header.apiKey)"), ("transactional.id", id)]
        if let producer = request.producer { about.append(("producer", "\(producer)")) }
        loop.logRefusal(code, nil, client: header.clientID, about: about)
    }
}
