/// A set of ASCII characters, one bit each.
struct CharacterSet128: Hashable {
    private var low: UInt64 = 0
    private var high: UInt64 = 0

    static let all = CharacterSet128(0...127)

    init() {}
    init(_ range: ClosedRange<UInt8>) { insert(range) }

    func contains(_ byte: UInt8) -> Bool {
        byte < 64 ? low >> UInt64(byte) & 1 == 1 : byte < 128 && high >> UInt64(byte - 64) & 1 == 1
    }

    mutating func insert(_ byte: UInt8) {
        if byte < 64 { low |= 1 << UInt64(byte) } else if byte < 128 { high |= 1 << UInt64(byte - 64) }
    }

    mutating func insert(_ range: ClosedRange<UInt8>) {
        for byte in range where byte < 128 { insert(byte) }
    }

    mutating func formUnion(_ other: CharacterSet128) {
        low |= other.low
        high |= other.high
    }

    var inverted: CharacterSet128 {
        var result = self
        result.low = ~low
        result.high = ~high
        return result
    }

    /// With the other case of every letter.
    var foldingCase: CharacterSet128 {
        var result = self
        for upper in UInt8(ascii: "A")...UInt8(ascii: "Z") {
            if contains(upper) { result.insert(upper + 32) }
            if contains(upper + 32) { result.insert(upper) }
        }
        return result
    }
}

/// Why a pattern is refused: words for the client.
package struct PatternError: Error, Equatable {
    package var reason: String

    package init(reason: String) { self.reason = reason }
}

/// A parsed pattern.
indirect enum PatternNode {
    case empty
    case characters(CharacterSet128)
    case assertion(Assertion)
    case sequence([PatternNode])
    case alternatives([PatternNode])
    /// `maximum` is `nil` where there is none.
    case repetition(PatternNode, minimum: Int, maximum: Int?)

    enum Assertion { case textStart, textEnd, lineStart, lineEnd, wordBoundary, noWordBoundary }
}

/// Parser of RE2's syntax, as far as it can matter for topic names, which are ASCII: what is not ASCII is read
/// and matches nothing. Back references and look-around do not exist in RE2 and are refused.
///
/// Source: the syntax page of RE2. Which of several matches is meant (lazy or greedy) does not matter here.
struct PatternParser {
    private struct Flags {
        var ignoresCase = false
        var isMultiline = false
        var dotMatchesNewline = false
    }

    private let text: [Unicode.Scalar]
    private var position = 0
    private var flags = Flags()
    private var depth = 0

    private init(_ text: String) { self.text = Array(text.unicodeScalars) }

    static func parse(_ text: String) throws(PatternError) -> PatternNode {
        guard text.utf8.count <= PatternLimits.textBytesLimit else {
            throw PatternError(reason: "the pattern is longer than \(PatternLimits.textBytesLimit) bytes")
        }
        var parser = PatternParser(text)
        let node = try parser.alternatives()
        guard parser.position == parser.text.count else {
            throw PatternError(reason: "unexpected ')' at position \(parser.position)")
        }
        return node
    }

    // MARK: Structure

    private mutating func alternatives() throws(PatternError) -> PatternNode {
        depth += 1
        guard depth <= PatternLimits.nestingLimit else {
            throw PatternError(reason: "groups are nested more than \(PatternLimits.nestingLimit) deep")
        }
        // Flags that are set inside a group end with it.
        let outer = flags
        defer {
            flags = outer
            depth -= 1
        }
        var branches: [PatternNode] = []
        repeat { branches.append(try sequence()) } while take("|")
        return branches.count == 1 ? branches[0] : .alternatives(branches)
    }

    private mutating func sequence() throws(PatternError) -> PatternNode {
        var parts: [PatternNode] = []
        while let next = peek(), next != "|", next != ")" {
            guard let atom = try atom() else { continue }
            parts.append(try repetitions(of: atom))
        }
        return parts.count == 1 ? parts[0] : parts.isEmpty ? .empty : .sequence(parts)
    }

    /// `nil` for what only changes flags.
    private mutating func atom() throws(PatternError) -> PatternNode? {
        let start = position
        guard let scalar = next() else { return .empty }
        switch scalar {
        case "(":
            return try group()
        case "[":
            return .characters(try bracket())
        case ".":
            var any = CharacterSet128.all
            if !flags.dotMatchesNewline {
                var newline = CharacterSet128()
                newline.insert(10)
                any = newline.inverted
            }
            return .characters(any)
        case "^":
            return .assertion(flags.isMultiline ? .lineStart : .textStart)
        case "$":
            return .assertion(flags.isMultiline ? .lineEnd : .textEnd)
        case "\\":
            return try escape()
        case "*", "+", "?":
            throw PatternError(reason: "nothing before '\(scalar)' at position \(start)")
        case _:
            return .characters(literal(scalar))
        }
    }

    private mutating func group() throws(PatternError) -> PatternNode? {
        var inner = flags
        if take("?") {
            if take("P") || peek() == "<" {
                try groupName()
            } else {
                let (changed, endsHere) = try flagChanges()
                if endsHere {
                    flags = changed
                    return nil
                }
                inner = changed
            }
        }
        let outer = flags
        flags = inner
        let node = try alternatives()
        flags = outer
        guard take(")") else { throw PatternError(reason: "a group is not closed") }
        return node
    }

    private mutating func groupName() throws(PatternError) {
        let malformed = PatternError(
            reason: "a group's name is not well formed; look-behind is not part of RE2")
        guard take("<") else { throw malformed }
        var length = 0
        while !take(">") {
            guard let scalar = next(), scalar.isASCII,
                scalar == "_" || scalar.properties.isAlphabetic
                    || (length > 0 && ("0"..."9").contains(scalar))
            else { throw malformed }
            length += 1
        }
        guard length > 0 else { throw malformed }
    }

    /// Reads flags after `(?`: they hold for the rest of the enclosing group if the parenthesis ends here, else
    /// for the group that follows the colon.
    private mutating func flagChanges() throws(PatternError) -> (Flags, endsHere: Bool) {
        var changed = flags
        var value = true
        while let scalar = next() {
            switch scalar {
            case "i": changed.ignoresCase = value
            case "m": changed.isMultiline = value
            case "s": changed.dotMatchesNewline = value
            case "U": break
            case "-" where value: value = false
            case ")": return (changed, true)
            case ":": return (changed, false)
            case _:
                throw PatternError(
                    reason: "'(?\(scalar)' is not part of RE2, nor are look-around and back references")
            }
        }
        throw PatternError(reason: "a group is not closed")
    }

    private mutating func repetitions(of atom: PatternNode) throws(PatternError) -> PatternNode {
        var node = atom
        var count = 0
        while let (minimum, maximum) = try quantifier() {
            // RE2 refuses `a**` and keeps `a*?`, which `quantifier` has taken already.
            count += 1
            guard count <= 1 else { throw PatternError(reason: "a repetition is repeated") }
            node = .repetition(node, minimum: minimum, maximum: maximum)
        }
        return node
    }

    private mutating func quantifier() throws(PatternError) -> (Int, Int?)? {
        let bounds: (Int, Int?)
        switch peek() {
        case "*": bounds = (0, nil)
        case "+": bounds = (1, nil)
        case "?": bounds = (0, 1)
        case "{":
            // A brace that is no repetition is a literal.
            guard let braces = try braces() else { return nil }
            _ = take("?")
            return braces
        case _: return nil
        }
        position += 1
        _ = take("?")
        return bounds
    }

    private mutating func braces() throws(PatternError) -> (Int, Int?)? {
        let start = position
        position += 1
        guard let minimum = number() else {
            position = start
            return nil
        }
        var maximum: Int? = minimum
        if take(",") { maximum = number() }
        guard take("}") else {
            position = start
            return nil
        }
        guard minimum <= PatternLimits.repetitionLimit, (maximum ?? 0) <= PatternLimits.repetitionLimit,
            maximum.map({ minimum <= $0 }) ?? true
        else {
            throw PatternError(
                reason: "a repetition counts at most \(PatternLimits.repetitionLimit), least first")
        }
        return (minimum, maximum)
    }

    private mutating func number() -> Int? {
        var value: Int?
        while let scalar = peek(), ("0"..."9").contains(scalar) {
            position += 1
            value = min((value ?? 0) * 10 + Int(scalar.value - 48), PatternLimits.repetitionLimit + 1)
        }
        return value
    }

    // MARK: Characters

    private func literal(_ scalar: Unicode.Scalar) -> CharacterSet128 {
        var set = CharacterSet128()
        if scalar.isASCII { set.insert(UInt8(scalar.value)) }
        return flags.ignoresCase ? set.foldingCase : set
    }

    private mutating func escape() throws(PatternError) -> PatternNode {
        guard let scalar = peek() else { throw PatternError(reason: "'\\' at the end") }
        switch scalar {
        case "A":
            position += 1
            return .assertion(.textStart)
        case "z":
            position += 1
            return .assertion(.textEnd)
        case "b":
            position += 1
            return .assertion(.wordBoundary)
        case "B":
            position += 1
            return .assertion(.noWordBoundary)
        case "Q":
            position += 1
            return quotation()
        case _:
            if let set = try characterClass() { return .characters(set) }
            return .characters(literal(try escapedCharacter()))
        }
    }

    /// `\Q…\E`: everything inside stands for itself. A repetition after it concerns the last character.
    private mutating func quotation() -> PatternNode {
        var parts: [PatternNode] = []
        while let scalar = next() {
            if scalar == "\\", peek() == "E" {
                position += 1
                break
            }
            parts.append(.characters(literal(scalar)))
        }
        return .sequence(parts)
    }

    /// After a backslash: a class such as `\d` or `\pL`, or `nil` if it is a single character.
    private mutating func characterClass() throws(PatternError) -> CharacterSet128? {
        guard let scalar = peek() else { return nil }
        var set = CharacterSet128()
        switch scalar {
        case "d", "D": set.insert(48...57)
        case "w", "W": set = Self.word
        case "s", "S": for byte: UInt8 in [9, 10, 12, 13, 32] { set.insert(byte) }
        case "p", "P":
            position += 1
            let (members, isNegated) = try unicodeClass()
            return (scalar == "P") != isNegated ? members.inverted : members
        case _: return nil
        }
        position += 1
        return ("A"..."Z").contains(scalar) ? set.inverted : set
    }

    static let word: CharacterSet128 = {
        var set = CharacterSet128(48...57)
        set.insert(65...90)
        set.insert(97...122)
        set.insert(95)
        return set
    }()

    /// The ASCII part of a general category or script, after `\p`.
    private mutating func unicodeClass() throws(PatternError) -> (CharacterSet128, isNegated: Bool) {
        var name = ""
        var isNegated = false
        if take("{") {
            isNegated = take("^")
            while let scalar = next(), scalar != "}" { name.unicodeScalars.append(scalar) }
            guard text[position - 1] == "}" else { throw PatternError(reason: "'\\p{' is not closed") }
        } else if let scalar = next() {
            name.unicodeScalars.append(scalar)
        }
        var set = CharacterSet128()
        switch name {
        case "L", "Latin":
            set.insert(65...90)
            set.insert(97...122)
        case "Lu": set.insert(65...90)
        case "Ll": set.insert(97...122)
        case "N", "Nd": set.insert(48...57)
        case "P", "S", "Pc", "Pd", "Po", "Ps", "Pe", "Sm", "Sc", "Sk":
            for byte: UInt8 in 33...126 where Self.category(byte).hasPrefix(name) { set.insert(byte) }
        case "Z", "Zs": set.insert(32)
        case "C", "Cc":
            set.insert(0...31)
            set.insert(127)
        case "Any": set = .all
        case "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "Nl", "No", "Pi", "Pf", "So", "Zl", "Zp", "Cf", "Co",
            "Cs", "Greek", "Cyrillic", "Han", "Hiragana", "Katakana", "Hangul", "Arabic", "Hebrew", "Thai",
            "Armenian", "Georgian", "Devanagari":
            break
        case _: throw PatternError(reason: "the character class '\(name)' is not known")
        }
        return (set, isNegated)
    }

    private static func category(_ byte: UInt8) -> String {
        switch UnicodeScalar(byte) {
        case "_": "Pc"
        case "-": "Pd"
        case "(", "[", "{": "Ps"
        case ")", "]", "}": "Pe"
        case "+", "<", "=", ">", "|", "~": "Sm"
        case "$": "Sc"
        case "^", "`": "Sk"
        case "0"..."9": "Nd"
        case "A"..."Z": "Lu"
        case "a"..."z": "Ll"
        case _: "Po"
        }
    }

    /// After a backslash: one character, by its name, its number or as itself.
    private mutating func escapedCharacter() throws(PatternError) -> Unicode.Scalar {
        guard let scalar = next() else { throw PatternError(reason: "'\\' at the end") }
        switch scalar {
        case "a": return "\u{07}"
        case "f": return "\u{0c}"
        case "t": return "\t"
        case "n": return "\n"
        case "r": return "\r"
        case "v": return "\u{0b}"
        case "x":
            if take("{") {
                let value = hexadecimal(upTo: 8)
                guard take("}"), let value, let result = Unicode.Scalar(value) else {
                    throw PatternError(reason: "'\\x{' is not well formed")
                }
                return result
            }
            let start = position
            guard let value = hexadecimal(upTo: 2), position == start + 2, let result = Unicode.Scalar(value)
            else {
                throw PatternError(reason: "'\\x' needs two hexadecimal digits")
            }
            return result
        case "0"..."7":
            // `\1` to `\7` alone would be back references, which RE2 does not have.
            guard scalar == "0" || peek().map({ ("0"..."7").contains($0) }) == true else {
                throw PatternError(reason: "back references are not part of RE2")
            }
            var value = scalar.value - 48
            var digits = 1
            while digits < 3, let digit = peek(), ("0"..."7").contains(digit) {
                position += 1
                digits += 1
                value = value * 8 + digit.value - 48
            }
            return Unicode.Scalar(value) ?? scalar
        case _:
            guard scalar.isASCII, !scalar.properties.isAlphabetic, !("8"..."9").contains(scalar) else {
                throw PatternError(reason: "'\\\(scalar)' is not known")
            }
            return scalar
        }
    }

    private mutating func hexadecimal(upTo count: Int) -> UInt32? {
        var value: UInt32?
        var digits = 0
        while digits < count, let scalar = peek(), scalar.properties.isASCIIHexDigit,
            let digit = UInt32(String(scalar), radix: 16)
        {
            position += 1
            digits += 1
            value = (value ?? 0) &* 16 &+ digit
        }
        return value
    }

    private mutating func bracket() throws(PatternError) -> CharacterSet128 {
        let isNegated = take("^")
        var set = CharacterSet128()
        var isFirst = true
        while true {
            guard let scalar = peek() else { throw PatternError(reason: "a bracket is not closed") }
            // A bracket that comes first stands for itself.
            if scalar == "]", !isFirst { break }
            isFirst = false
            if scalar == "[", position + 1 < text.count, text[position + 1] == ":" {
                if let named = try namedClass() {
                    set.formUnion(named)
                    continue
                }
            }
            if scalar == "\\" {
                position += 1
                if let known = try characterClass() {
                    set.formUnion(known)
                    continue
                }
                position -= 1
            }
            let low = try bracketCharacter()
            var high = low
            if peek() == "-", position + 1 < text.count, text[position + 1] != "]" {
                position += 1
                high = try bracketCharacter()
                guard low.value <= high.value else {
                    throw PatternError(reason: "the range '\(low)-\(high)' is empty")
                }
            }
            if low.value < 128 {
                set.insert(UInt8(low.value)...UInt8(min(high.value, 127)))
            }
        }
        position += 1
        if flags.ignoresCase { set = set.foldingCase }
        return isNegated ? set.inverted : set
    }

    private mutating func bracketCharacter() throws(PatternError) -> Unicode.Scalar {
        guard let scalar = next() else { throw PatternError(reason: "a bracket is not closed") }
        return scalar == "\\" ? try escapedCharacter() : scalar
    }

    /// `[:alpha:]` and its like inside a bracket; `nil` if it is none.
    private mutating func namedClass() throws(PatternError) -> CharacterSet128? {
        var end = position + 2
        while end + 1 < text.count, !(text[end] == ":" && text[end + 1] == "]") {
            guard text[end] == "^" || (text[end].isASCII && text[end].properties.isAlphabetic) else {
                return nil
            }
            end += 1
        }
        guard end + 1 < text.count else { return nil }
        var name = ""
        name.unicodeScalars.append(contentsOf: text[(position + 2)..<end])
        let isNegated = name.hasPrefix("^")
        if isNegated { name.removeFirst() }
        var set = CharacterSet128()
        switch name {
        case "alnum":
            set.insert(48...57)
            set.insert(65...90)
            set.insert(97...122)
        case "alpha":
            set.insert(65...90)
            set.insert(97...122)
        case "ascii": set = .all
        case "blank": for byte: UInt8 in [9, 32] { set.insert(byte) }
        case "cntrl":
            set.insert(0...31)
            set.insert(127)
        case "digit": set.insert(48...57)
        case "graph": set.insert(33...126)
        case "lower": set.insert(97...122)
        case "print": set.insert(32...126)
        case "punct":
            for byte: UInt8 in 33...126 where !Self.word.contains(byte) || byte == 95 { set.insert(byte) }
        case "space":
            set.insert(9...13)
            set.insert(32)
        case "upper": set.insert(65...90)
        case "word": set = Self.word
        case "xdigit":
            set.insert(48...57)
            set.insert(65...70)
            set.insert(97...102)
        case _: throw PatternError(reason: "the character class '[:\(name):]' is not known")
        }
        position = end + 2
        return isNegated ? set.inverted : set
    }

    // MARK: Text

    private func peek() -> Unicode.Scalar? { position < text.count ? text[position] : nil }

    private mutating func next() -> Unicode.Scalar? {
        guard position < text.count else { return nil }
        position += 1
        return text[position - 1]
    }

    private mutating func take(_ scalar: Unicode.Scalar) -> Bool {
        guard peek() == scalar else { return false }
        position += 1
        return true
    }
}
