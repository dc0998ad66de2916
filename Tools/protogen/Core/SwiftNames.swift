/// Turns names of the schemas (Kafka's own) into Swift names.
package enum SwiftNames {
    private static let keywords: Set<String> = [
        "as", "associatedtype", "break", "case", "catch", "class", "continue", "default", "defer", "deinit",
        "do",
        "else", "enum", "extension", "fallthrough", "false", "fileprivate", "for", "func", "guard", "if",
        "import",
        "in", "init", "inout", "internal", "is", "let", "nil", "operator", "precedencegroup", "private",
        "protocol", "public", "repeat", "rethrows", "return", "self", "static", "struct", "subscript",
        "super",
        "switch", "throw", "throws", "true", "try", "typealias", "var", "where", "while",
    ]

    /// `TopicId` → `topicID`, `ReplicaIds` → `replicaIDs`, `Protocol` → `` `protocol` ``.
    package static func property(_ name: String) -> String {
        let text = lowered(capitalizedIDs(name))
        return keywords.contains(text) ? "`\(text)`" : text
    }

    /// Without backquotes, for texts.
    package static func plainProperty(_ name: String) -> String { lowered(capitalizedIDs(name)) }

    /// `OFFSET_OUT_OF_RANGE` → `offsetOutOfRange`.
    package static func errorConstant(_ name: String) -> String {
        var text = ""
        for (index, word) in name.split(separator: "_").enumerated() {
            let lower = word.lowercased()
            if index == 0 {
                text += lower
            } else if lower == "id" {
                text += "ID"
            } else {
                text += lower.prefix(1).uppercased() + lower.dropFirst()
            }
        }
        return text
    }

    private static func lowered(_ name: String) -> String {
        let leading = name.prefix { $0.isUppercase }
        // `ISRNodes` would keep its last capital as the start of the next word; Kafka's names have one.
        let count = leading.count > 1 && leading.count < name.count ? leading.count - 1 : leading.count
        return name.prefix(count).lowercased() + name.dropFirst(count)
    }

    /// Replaces `Id` and `Ids` by `ID` and `IDs` where a word ends after them, except at the start.
    private static func capitalizedIDs(_ name: String) -> String {
        let letters = Array(name)
        var result = ""
        var index = 0
        while index < letters.count {
            if index > 0, letters[index] == "I", index + 1 < letters.count, letters[index + 1] == "d" {
                var end = index + 2
                let plural = end < letters.count && letters[end] == "s"
                if plural { end += 1 }
                if end == letters.count || letters[end].isUppercase || letters[end].isNumber {
                    result += plural ? "IDs" : "ID"
                    index = end
                    continue
                }
            }
            result.append(letters[index])
            index += 1
        }
        return result
    }
}
