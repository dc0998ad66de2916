package import MartletLogModel
package import NIOCore

/// Content of the file `quorum-state`.
package struct QuorumStateFile: Hashable, Sendable {
    package var epoch: LeaderEpoch
    package var vote: ReplicaKey?
    /// For a quick return to the leader after a restart; nothing depends on it.
    package var leaderID: BrokerID?

    package init(epoch: LeaderEpoch, vote: ReplicaKey? = nil, leaderID: BrokerID? = nil) {
        self.epoch = epoch
        self.vote = vote
        self.leaderID = leaderID
    }
}

// The file: one flat JSON object with the fields of QuorumStateData version 1, as Kafka writes it (KIP-853).
extension QuorumStateFile {
    package static let name = "quorum-state"
    /// What a file of this kind may be at most, in bytes.
    package static let byteLimit = 4096

    package func encode() -> ByteBuffer {
        ByteBuffer(
            string: "{\"leaderId\":\(leaderID?.rawValue ?? -1),\"leaderEpoch\":\(epoch.rawValue),"
                + "\"votedId\":\(vote?.id.rawValue ?? -1),"
                + "\"votedDirectoryId\":\"\(vote?.wireDirectory ?? .zero)\",\"data_version\":1}")
    }

    /// `nil` when the bytes are not such a file. Version 0, of before KIP-853, has no directory and other fields, which
    /// are left aside.
    package init?(decoding bytes: ByteBuffer) {
        guard let fields = Self.fields(String(buffer: bytes)), let version = fields["data_version"],
            version == "0" || version == "1", let epoch = fields["leaderEpoch"].flatMap({ Int32($0) }), epoch >= 0,
            let leader = fields["leaderId"].flatMap({ Int32($0) }), let voted = fields["votedId"].flatMap({ Int32($0) })
        else { return nil }
        self.init(epoch: LeaderEpoch(epoch))
        if leader >= 0 { leaderID = BrokerID(leader) }
        guard voted >= 0 else { return }
        var directory = UniversalID.zero
        if version == "1" {
            guard let found = fields["votedDirectoryId"].flatMap({ UniversalID($0) }) else { return nil }
            directory = found
        }
        vote = ReplicaKey(wireID: voted, wireDirectory: directory)
    }

    /// The numbers and strings of a flat object; lists and `null` are left aside. No escapes: none of the fields needs one.
    private static func fields(_ text: String) -> [String: String]? {
        var rest = Substring(text)
        func skipSpace() { rest = rest.drop { $0.isWhitespace } }
        func take(_ character: Character) -> Bool {
            skipSpace()
            guard rest.first == character else { return false }
            rest.removeFirst()
            return true
        }
        func string() -> String? {
            guard take("\""), let end = rest.firstIndex(of: "\"") else { return nil }
            defer { rest = rest[rest.index(after: end)...] }
            let content = rest[..<end]
            return content.contains("\\") ? nil : String(content)
        }
        guard take("{") else { return nil }
        var fields: [String: String] = [:]
        if take("}") { return fields }
        repeat {
            guard let name = string(), take(":") else { return nil }
            skipSpace()
            if rest.first == "\"" {
                guard let value = string() else { return nil }
                fields[name] = value
            } else if rest.first == "[" {
                guard let end = rest.firstIndex(of: "]") else { return nil }
                rest = rest[rest.index(after: end)...]
            } else {
                let value = rest.prefix { $0.isNumber || $0.isLetter || $0 == "-" }
                guard !value.isEmpty else { return nil }
                if value != "null" { fields[name] = String(value) }
                rest = rest[value.endIndex...]
            }
        } while take(",")
        guard take("}") else { return nil }
        skipSpace()
        return rest.isEmpty ? fields : nil
    }
}
