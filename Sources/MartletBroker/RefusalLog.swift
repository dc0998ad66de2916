package import Logging
internal import MartletCoordinators
internal import MartletKafkaProtocol
package import MartletLogModel
package import NIOCore

/// Refused requests in the log: one line each, with code, cause and remedy. A client that goes on being wrong must not
/// fill the log, nor hide what others are refused, so lines beyond a limit are counted, and the count is told with the
/// codes. Confined to a loop.
package struct RefusalLog {
    /// Lines of one loop within ``window``.
    package static let lineLimit = 20
    /// Of them, lines about one client id.
    package static let clientLineLimit = 10
    private static let window: TimeAmount = .seconds(1)
    /// Characters of a client's words in a line: group ids, for one, may be 32 KiB.
    private static let wordLengthLimit = 200

    private var windowEnd = NIODeadline.uptimeNanoseconds(0)
    private var lineCount = 0
    /// By client id; no more entries than lines.
    private var clientLineCounts: [String: Int] = [:]
    private var omittedCounts: [ErrorCode: Int] = [:]

    package init() {}

    /// - Parameter about: what the request was about, in the client's words.
    package mutating func log(
        _ code: ErrorCode, _ cause: String?, client: String?, about: [(String, String)], now: NIODeadline,
        _ logger: Logger
    ) {
        if now >= windowEnd {
            tellOmitted(logger)
            windowEnd = now + Self.window
            lineCount = 0
            clientLineCounts = [:]
        }
        let client = Self.shortened(client ?? "")
        guard lineCount < Self.lineLimit, clientLineCounts[client, default: 0] < Self.clientLineLimit else {
            omittedCounts[code, default: 0] += 1
            return
        }
        lineCount += 1
        clientLineCounts[client, default: 0] += 1
        var metadata: Logger.Metadata = [
            "client": "\(client)", "code": "\(code.name)",
            "cause": "\(Self.shortened(cause ?? code.text))",
        ]
        if !code.remedy.isEmpty { metadata["remedy"] = "\(code.remedy)" }
        for (name, value) in about { metadata[name] = "\(Self.shortened(value))" }
        logger.info("request refused", metadata: metadata)
    }

    /// Says how many lines were left out, if their window is over.
    package mutating func tellOmitted(endedBy now: NIODeadline, _ logger: Logger) {
        if now >= windowEnd { tellOmitted(logger) }
    }

    /// Says how many lines were left out, and with which codes.
    package mutating func tellOmitted(_ logger: Logger) {
        guard !omittedCounts.isEmpty else { return }
        let codes = omittedCounts.sorted { ($1.value, $0.key.name) < ($0.value, $1.key.name) }
        logger.info(
            "more requests refused",
            metadata: [
                "count": "\(omittedCounts.values.reduce(0, +))",
                "codes": "\(codes.map { "\($0.key.name): \($0.value)" }.joined(separator: ", "))",
            ])
        omittedCounts = [:]
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
