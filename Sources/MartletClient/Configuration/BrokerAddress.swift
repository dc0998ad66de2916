/// Host and port of a broker.
public struct BrokerAddress: Hashable, Sendable, CustomStringConvertible {
    /// Host name or address literal; an IPv6 literal is kept without brackets.
    public var host: String
    /// TCP port, 1 to 65,535.
    public var port: Int

    /// Kafka's customary port, used where an address names none.
    public static let defaultPort = 9092

    public init(host: String, port: Int = BrokerAddress.defaultPort) {
        self.host = host
        self.port = port
    }

    /// Parses `host`, `host:port`, `[v6]` or `[v6]:port`.
    ///
    /// - Throws: ``ClientError`` with code `invalidConfiguration`, naming the text and the form expected.
    public init(_ text: some StringProtocol) throws(ClientError) {
        func problem(_ why: String) -> ClientError {
            ClientError(
                .invalidConfiguration,
                "broker address '\(text)' \(why); write HOST:PORT, such as localhost:9092")
        }
        var host: Substring
        var port: Substring?
        let whole = Substring(text)
        if whole.first == "[" {
            guard let close = whole.firstIndex(of: "]") else { throw problem("has no closing bracket") }
            host = whole[whole.index(after: whole.startIndex)..<close]
            let rest = whole[whole.index(after: close)...]
            if rest.isEmpty {
                port = nil
            } else if rest.first == ":" {
                port = rest.dropFirst()
            } else {
                throw problem("has text after the closing bracket")
            }
        } else if let colon = whole.lastIndex(of: ":") {
            host = whole[..<colon]
            port = whole[whole.index(after: colon)...]
            if host.contains(":") { throw problem("looks like an IPv6 literal without brackets") }
        } else {
            host = whole
        }
        if host.isEmpty { throw problem("has no host") }
        if host.contains(where: { $0.isWhitespace || $0 == "/" }) {
            throw problem("has a blank or a slash in the host name")
        }
        var number = Self.defaultPort
        if let port {
            guard let value = Int(port), (1...65_535).contains(value) else {
                throw problem("has no port between 1 and 65535")
            }
            number = value
        }
        self.init(host: String(host), port: number)
    }

    /// Parses a comma-separated list such as `broker1:9092,broker2:9092`; blanks around entries are ignored.
    public static func list(_ text: some StringProtocol) throws(ClientError) -> [BrokerAddress] {
        var addresses: [BrokerAddress] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: true) {
            var entry = Substring(part)
            while entry.first?.isWhitespace == true { entry.removeFirst() }
            while entry.last?.isWhitespace == true { entry.removeLast() }
            if entry.isEmpty { continue }
            addresses.append(try BrokerAddress(entry))
        }
        if addresses.isEmpty {
            throw ClientError(
                .invalidConfiguration, "the list of bootstrap brokers is empty; give at least one HOST:PORT")
        }
        return addresses
    }

    public var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
}
