import NIOCore

/// Offset index: entries of 4 bytes offset relative to the segment's base and 4 bytes position. Time index:
/// 8 bytes time and 4 bytes relative offset. Big-endian; a file ends early where it was preallocated.
enum IndexDump {
    static func run(path: String, entryBytes: Int, json: Bool) throws {
        let file = try PositionedFile(path)
        let base = baseOffset(path)
        var position: Int64 = 0
        var count = 0
        var former: (Int64, Int64)?
        while position + Int64(entryBytes) <= file.byteCount {
            var entry = try file.read(at: position, entryBytes)
            let first: Int64
            let second: Int64
            if entryBytes == 8 {
                first = Int64(entry.readInteger(as: UInt32.self) ?? 0)
                second = Int64(entry.readInteger(as: UInt32.self) ?? 0)
            } else {
                first = entry.readInteger(as: Int64.self) ?? 0
                second = Int64(entry.readInteger(as: UInt32.self) ?? 0)
            }
            if count > 0, first == 0, second == 0 { break }
            if let former, first < former.0 || second < former.1 {
                throw CommandFailure(
                    "\(path): entry \(count) goes back: (\(first), \(second)) after (\(former.0), \(former.1))",
                    remedy: "the broker rebuilds a deleted index from its segment on start")
            }
            former = (first, second)
            let offset = base + (entryBytes == 8 ? first : second)
            if json {
                let other =
                    entryBytes == 8 ? ("position", JSONValue.integer(second)) : ("timestamp", .integer(first))
                try Console.print(JSONValue.object([("offset", .integer(offset)), other]).line)
            } else if entryBytes == 8 {
                try Console.print("offset \(offset)  position \(second)")
            } else {
                try Console.print("time \(first) (\(CivilTime.text(milliseconds: first)))  offset \(offset)")
            }
            count += 1
            position += Int64(entryBytes)
        }
        if !json { try Console.print("\(count) entries") }
    }

    /// The base offset is the file's name.
    static func baseOffset(_ path: String) -> Int64 {
        let name = path.split(separator: "/").last ?? ""
        return Int64(name.prefix { $0 != "." }) ?? 0
    }
}
