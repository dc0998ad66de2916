import Foundation

package struct HistoryFileError: Error, CustomStringConvertible {
    package var line: Int
    package var reason: String

    package var description: String { "line \(line): \(reason)" }
}

/// Histories as text: one JSON object per line and operation, so that programs in any language can write them.
///
///     {"process":1,"start":10,"end":20,"outcome":"ok","transaction":true,"steps":[["send","t-0",7,12]]}
///     {"complete":true}
///
/// Steps are arrays that start with their kind: `["subscribe","t"…]`, `["assign","t-0",4]`, `["rebalanced"]`,
/// `["send","t-0",value,offset or null]`, `["poll",["t-0",offset,value]…]`, `["commit","group","t-0",offset]`,
/// `["committed","group","t-0",offset]`, `["hold","group","member",epoch,"t-0"…]`,
/// `["acquired","group","t-0",first,last,count,lockMilliseconds]`, `["settled","group","t-0",first,last,"accept"]`,
/// `["sessionEnded","group"]`, `["deleted","t"]`. `outcome` is `ok`, `fail` or `info`; times are nanoseconds of one
/// clock.
package enum HistoryFile {
    package static func encode(_ history: History) -> String {
        var text = ""
        for operation in history.operations {
            text += "{\"process\":\(operation.process),\"start\":\(operation.start),\"end\":\(operation.end)"
            text += ",\"outcome\":\"\(operation.outcome.rawValue)\""
            if operation.isTransaction { text += ",\"transaction\":true" }
            text += ",\"steps\":[\(operation.steps.map(encode).joined(separator: ","))]}\n"
        }
        if history.isComplete { text += "{\"complete\":true}\n" }
        return text
    }

    private static func encode(_ step: Step) -> String {
        switch step {
        case .subscribe(let topics): "[\"subscribe\"\(topics.map { "," + quoted($0) }.joined())]"
        case .assign(let place, let offset): "[\"assign\",\(quoted(place.description)),\(offset)]"
        case .rebalanced: "[\"rebalanced\"]"
        case .send(let place, let value, let offset):
            "[\"send\",\(quoted(place.description)),\(value),\(offset.map(String.init) ?? "null")]"
        case .poll(let records):
            "[\"poll\""
                + records.map { ",[\(quoted($0.place.description)),\($0.offset),\($0.value)]" }.joined() + "]"
        case .commit(let item): "[\"commit\",\(encode(item))]"
        case .committed(let item): "[\"committed\",\(encode(item))]"
        case .hold(let group, let member, let epoch, let places):
            "[\"hold\",\(quoted(group)),\(quoted(member)),\(epoch)"
                + places.map { "," + quoted($0.description) }.joined() + "]"
        case .acquired(let group, let place, let first, let last, let count, let lock):
            "[\"acquired\",\(quoted(group)),\(quoted(place.description)),\(first),\(last),\(count),\(lock)]"
        case .settled(let group, let place, let first, let last, let kind):
            "[\"settled\",\(quoted(group)),\(quoted(place.description)),\(first),\(last),\(quoted(kind.rawValue))]"
        case .sessionEnded(let group): "[\"sessionEnded\",\(quoted(group))]"
        case .deleted(let topic): "[\"deleted\",\(quoted(topic))]"
        }
    }

    private static func encode(_ item: GroupOffset) -> String {
        "\(quoted(item.group)),\(quoted(item.place.description)),\(item.offset)"
    }

    private static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": result += "\\\(scalar)"
            case "\u{0}"..."\u{1f}":
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            case _: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }

    package static func decode(_ text: String) throws -> History {
        var history = History()
        for (number, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated()
        where !line.isEmpty {
            do {
                let value = try JSONSerialization.jsonObject(with: Data(line.utf8))
                guard let object = value as? [String: Any] else { throw Problem("not an object") }
                if object["complete"] as? Bool == true {
                    history.isComplete = true
                } else {
                    history.operations.append(try operation(object))
                }
            } catch {
                throw HistoryFileError(line: number + 1, reason: "\(error)")
            }
        }
        return history
    }

    private struct Problem: Error, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }

    private static func operation(_ object: [String: Any]) throws -> Operation {
        guard let process = object["process"] as? Int, let start = object["start"] as? Int,
            let end = object["end"] as? Int, let outcome = (object["outcome"] as? String).flatMap(Outcome.init),
            let steps = object["steps"] as? [[Any]]
        else { throw Problem("an operation has process, start, end, outcome and steps") }
        return Operation(
            process: process, start: Int64(start), end: Int64(end), outcome: outcome,
            isTransaction: object["transaction"] as? Bool ?? false, steps: try steps.map(step))
    }

    private static func step(_ items: [Any]) throws -> Step {
        let texts = items.map { $0 as? String }
        let numbers = items.map { ($0 as? Int).map(Int64.init) }
        func text(_ index: Int) throws -> String {
            guard index < texts.count, let text = texts[index] else { throw Problem("step \(items): no text at \(index)") }
            return text
        }
        func number(_ index: Int) throws -> Int64 {
            guard index < numbers.count, let number = numbers[index] else {
                throw Problem("step \(items): no number at \(index)")
            }
            return number
        }
        func place(_ name: String) throws -> Place {
            guard let place = Place(name) else { throw Problem("'\(name)' is not topic-partition") }
            return place
        }
        switch try text(0) {
        case "subscribe":
            return .subscribe(try items.indices.dropFirst().map(text))
        case "assign":
            return .assign(try place(text(1)), from: try number(2))
        case "rebalanced":
            return .rebalanced
        case "send":
            guard items.count == 4 else { throw Problem("step \(items): a send has three parts") }
            return .send(try place(text(1)), value: try number(2), offset: numbers[3])
        case "poll":
            return .poll(
                try items.dropFirst().map { item in
                    guard let parts = item as? [Any], parts.count == 3, let name = parts[0] as? String,
                        let offset = parts[1] as? Int, let value = parts[2] as? Int
                    else { throw Problem("a polled record is [place, offset, value]") }
                    return SeenRecord(try place(name), Int64(offset), Int64(value))
                })
        case "commit":
            return .commit(GroupOffset(try text(1), try place(text(2)), try number(3)))
        case "committed":
            return .committed(GroupOffset(try text(1), try place(text(2)), try number(3)))
        case "hold":
            return .hold(
                group: try text(1), member: try text(2), epoch: Int(try number(3)),
                places: try items.indices.dropFirst(4).map { try place(text($0)) })
        case "acquired":
            return .acquired(
                group: try text(1), try place(text(2)), first: try number(3), last: try number(4),
                count: Int(try number(5)), lockMilliseconds: try number(6))
        case "settled":
            guard let kind = Settlement(rawValue: try text(5)) else {
                throw Problem("step \(items): records are accepted, released or rejected")
            }
            return .settled(group: try text(1), try place(text(2)), first: try number(3), last: try number(4), kind)
        case "sessionEnded":
            return .sessionEnded(group: try text(1))
        case "deleted":
            return .deleted(topic: try text(1))
        case let kind:
            throw Problem("no step is called '\(kind)'")
        }
    }
}
