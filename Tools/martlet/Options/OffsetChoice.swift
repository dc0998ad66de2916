import MartletLogModel

/// Where to start reading, as written on the command line.
enum OffsetChoice: Hashable {
    case earliest
    case latest
    case at(Int64)
    /// So many records before the end.
    case fromEnd(Int64)
    case time(Timestamp)

    static let forms =
        "earliest, latest, N, -N (N before the end), or a time: @MILLISECONDS or 2026-01-31T09:30:00Z"

    init(_ text: String) throws {
        switch text {
        case "earliest", "beginning", "start": self = .earliest
        case "latest", "end": self = .latest
        case _:
            if text.hasPrefix("@"), let time = Int64(text.dropFirst()) {
                self = .time(Timestamp(milliseconds: time))
            } else if text.hasPrefix("-"), let count = Int64(text.dropFirst()) {
                self = .fromEnd(count)
            } else if let offset = Int64(text) {
                self = .at(offset)
            } else if let time = CivilTime.parse(text) {
                self = .time(Timestamp(milliseconds: time))
            } else {
                throw CommandFailure(
                    "'\(text)' is not an offset", remedy: "write \(Self.forms)", exitCode: .usage)
            }
        }
    }

    /// As the client asks for it; counting from the end needs the end first.
    var spec: OffsetSpec? {
        switch self {
        case .earliest: .earliest
        case .latest: .latest
        case .at(let offset): .at(Offset(offset))
        case .time(let time): .timestamp(time)
        case .fromEnd: nil
        }
    }
}
