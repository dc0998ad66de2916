/// Reads `server.properties` files: `key=value` lines, `#` and `!` comments, a backslash joins lines.
package enum PropertiesFile {
    package struct Entry: Hashable, Sendable {
        package var key: String
        package var value: String
        /// 1 for the first line.
        package var line: Int
    }

    package struct SyntaxError: Error, Hashable, CustomStringConvertible {
        package var line: Int
        package var text: String

        package var description: String {
            "line \(line): '\(text.prefix(80))' is not of the form key=value; comment it out with '#' or add a value"
        }
    }

    package static func parse(_ text: String) throws(SyntaxError) -> [Entry] {
        var entries: [Entry] = []
        var logical = ""
        var firstLine = 1
        for (index, rawLine) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            var line = Substring(rawLine)
            if line.last == "\r" { line.removeLast() }
            line = line.drop { $0 == " " || $0 == "\t" }
            if logical.isEmpty {
                firstLine = index + 1
                if line.isEmpty || line.first == "#" || line.first == "!" { continue }
            }
            if line.last == "\\" {
                logical += line.dropLast()
                continue
            }
            logical += line
            entries.append(try entry(logical, line: firstLine))
            logical = ""
        }
        if !logical.isEmpty { entries.append(try entry(logical, line: firstLine)) }
        return entries
    }

    private static func entry(_ text: String, line: Int) throws(SyntaxError) -> Entry {
        guard let separator = text.firstIndex(where: { $0 == "=" || $0 == ":" }) else {
            throw SyntaxError(line: line, text: text)
        }
        let key = trimmed(text[..<separator])
        guard !key.isEmpty else { throw SyntaxError(line: line, text: text) }
        return Entry(key: key, value: trimmed(text[text.index(after: separator)...]), line: line)
    }

    private static func trimmed(_ text: Substring) -> String {
        var text = text.drop { $0 == " " || $0 == "\t" }
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return String(text)
    }
}
