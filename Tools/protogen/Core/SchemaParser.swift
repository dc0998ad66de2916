/// Parser of the schema language; `Protocol/README.md` describes it. Line oriented: one header entry, field,
/// or closing brace per line.
package struct SchemaParser {
    private let file: String
    private var lines: [Substring]
    private var index = 0
    private var message: Message
    /// Note lines (`//`) above the next field.
    private var pendingNote: [String] = []

    private init(file: String, text: String) {
        self.file = file
        self.lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        self.message = Message(
            kind: .data, name: "", about: "", key: nil, versions: VersionRange(0, 0), advertised: nil,
            flexible: nil, since: [], fields: [], structures: [])
    }

    /// All messages of one file.
    package static func parse(file: String, text: String) throws(SchemaError) -> [Message] {
        var parser = SchemaParser(file: file, text: text)
        var messages: [Message] = []
        while let line = parser.next() {
            let content = trim(line)
            if content.isEmpty || content.hasPrefix("#") { continue }
            messages.append(try parser.parseMessage(words(content)))
        }
        return messages
    }

    private mutating func next() -> Substring? {
        guard index < lines.count else { return nil }
        defer { index += 1 }
        return lines[index]
    }

    private func fail(_ text: String) -> SchemaError { SchemaError(file: file, line: index, text: text) }

    // MARK: Message

    private mutating func parseMessage(_ start: [Substring]) throws(SchemaError) -> Message {
        guard start.count == 3, start[2] == "{", let kind = Message.Kind(rawValue: String(start[0])) else {
            throw fail(
                "expected '<kind> <Name> {', kind being request, response, metadata, coordinatorKey, "
                    + "coordinatorValue or data")
        }
        message.kind = kind
        message.name = String(start[1])
        message.key = nil
        message.advertised = nil
        message.flexible = nil
        message.about = ""
        message.since = []
        message.fields = []
        message.structures = []
        try parseHeader()
        message.fields = try parseFields(within: VersionRange(message.versions.lower, VersionRange.open))
        for field in message.fields { try check(field) }
        for structure in message.structures { for field in structure.fields { try check(field) } }
        return message
    }

    private mutating func parseHeader() throws(SchemaError) {
        var hasVersions = false
        var hasFlexible = false
        while let line = next() {
            let content = Self.trim(line)
            if content.isEmpty { break }
            let (word, rest) = Self.splitFirst(content)
            switch word {
            case "about": message.about = String(rest)
            case "key": message.key = try int(rest)
            case "versions":
                message.versions = try range(rest)
                hasVersions = true
                guard message.versions.upper != VersionRange.open else {
                    throw fail("a message's versions need an upper end")
                }
            case "advertise": message.advertised = try range(rest)
            case "flexible":
                hasFlexible = true
                message.flexible = rest == "none" ? nil : try range(rest).lower
            case "since":
                let (version, text) = Self.splitFirst(rest)
                message.since.append((try int(version), String(text)))
            case _: throw fail("unknown header entry '\(word)'; a blank line ends the header")
            }
        }
        guard hasVersions, hasFlexible, !message.about.isEmpty else {
            throw fail("\(message.name) needs the header entries about, versions and flexible")
        }
        for (version, _) in message.since where !message.versions.contains(version) {
            throw fail("'since \(version)' is outside versions \(message.versions)")
        }
    }

    // MARK: Fields

    private mutating func parseFields(within parent: VersionRange) throws(SchemaError) -> [Field] {
        var fields: [Field] = []
        pendingNote = []
        while let line = next() {
            let content = Self.trim(line)
            if content == "}" { return fields }
            if content.isEmpty || content.hasPrefix("#") { continue }
            if content.hasPrefix("//") {
                pendingNote.append(String(Self.trim(content.dropFirst(2))))
                continue
            }
            if content.hasPrefix("struct ") {
                try parseStructure(content)
                continue
            }
            let field = try parseField(content, within: parent)
            guard !fields.contains(where: { $0.name == field.name }) else {
                throw fail("field \(field.name) is declared twice")
            }
            if let tag = field.tag, fields.contains(where: { $0.tag == tag }) {
                throw fail("tag \(tag) is used twice")
            }
            fields.append(field)
        }
        throw fail("missing '}'")
    }

    private mutating func parseStructure(_ content: Substring) throws(SchemaError) {
        var parts = Self.words(content)
        guard parts.last == "{", parts.count == 3 || parts.count == 4 else {
            throw fail("expected 'struct <Name> [versions] {'")
        }
        parts.removeLast()
        let whole = VersionRange(message.versions.lower, VersionRange.open)
        let versions = parts.count == 3 ? try range(parts[2]) : whole
        let note = pendingNote.joined(separator: " ")
        try declare(Structure(name: String(parts[1]), versions: versions, note: note, fields: []))
    }

    private mutating func declare(_ structure: Structure) throws(SchemaError) {
        guard message.structure(structure.name) == nil else {
            throw fail("structure \(structure.name) is declared twice in \(message.name)")
        }
        let place = message.structures.count
        message.structures.append(structure)
        let fields = try parseFields(within: structure.versions)
        message.structures[place].fields = fields
    }

    private mutating func parseField(_ line: Substring, within parent: VersionRange) throws(SchemaError)
        -> Field
    {
        let number = index
        var (content, note) = Self.splitNote(line)
        if !pendingNote.isEmpty { note = (pendingNote + (note.isEmpty ? [] : [note])).joined(separator: " ") }
        pendingNote = []
        let opens = content.hasSuffix("{")
        if opens { content = Self.trim(content.dropLast()) }
        var parts = Self.words(content)[...]
        guard parts.count >= 2, let name = parts.popFirst(), var typeText = parts.popFirst() else {
            throw fail(
                "expected '<Name> <type> [versions] [nullable versions] [tag n] [default x] [ignorable]'")
        }
        let alwaysNullable = typeText.hasSuffix("?")
        if alwaysNullable { typeText = typeText.dropLast() }
        var field = Field(
            name: String(name), type: try type(typeText), versions: parent, nullable: nil, tag: nil,
            defaultValue: .own, ignorable: false, note: note, line: number)
        if let word = parts.first, word.first?.isNumber == true {
            parts.removeFirst()
            let versions = try range(word)
            guard let inside = versions.intersection(parent), inside.intersection(message.versions) != nil
            else {
                throw fail("\(name): versions \(versions) are outside \(parent)")
            }
            field.versions = inside
        }
        if alwaysNullable { field.nullable = field.versions }
        try parseAttributes(&parts, &field)
        if opens {
            guard let structureName = Self.structureName(field.type) else {
                throw fail("\(name): only a structure or an array of structures has fields")
            }
            try declare(Structure(name: structureName, versions: field.versions, note: note, fields: []))
        }
        return field
    }

    private func parseAttributes(_ parts: inout ArraySlice<Substring>, _ field: inout Field)
        throws(SchemaError)
    {
        while let word = parts.popFirst() {
            switch word {
            case "ignorable": field.ignorable = true
            case "nullable", "tag", "default":
                guard let argument = parts.popFirst() else { throw fail("'\(word)' needs an argument") }
                if word == "tag" {
                    field.tag = try int(argument)
                } else if word == "nullable" {
                    field.nullable = try range(argument).intersection(field.versions)
                } else {
                    field.defaultValue = argument == "null" ? .null : .literal(String(argument))
                }
            case _: throw fail("unknown attribute '\(word)'")
            }
        }
    }

    /// Rules that need the whole message.
    private func check(_ field: Field) throws(SchemaError) {
        func reject(_ text: String) -> SchemaError {
            SchemaError(file: file, line: field.line, text: "\(field.name): \(text)")
        }
        if let name = Self.structureName(field.type) {
            guard let structure = message.structure(name) else { throw reject("no structure named \(name)") }
            let used = field.versions.intersection(message.versions)
            guard let used, structure.versions.intersection(used) == used else {
                throw reject("structure \(name) exists in \(structure.versions) only")
            }
        }
        if case .array(.array) = field.type { throw reject("arrays of arrays are not supported") }
        if let tag = field.tag {
            guard let flexible = message.flexible, field.versions.lower >= flexible else {
                throw reject("tagged fields need flexible versions")
            }
            guard tag >= 0 else { throw reject("a tag is 0 or above") }
        }
        switch (field.type, field.defaultValue) {
        case (_, .own): break
        case (_, .null):
            guard field.nullable != nil else { throw reject("default null, but never nullable") }
        case (.bool, .literal(let text)):
            guard text == "true" || text == "false" else { throw reject("default must be true or false") }
        case (.string, .literal(let text)):
            guard text.count >= 2, text.hasPrefix("\""), text.hasSuffix("\"") else {
                throw reject("a default text stands in quotes and has no blank")
            }
        case (.float64, .literal(let text)):
            guard Double(text) != nil else { throw reject("'\(text)' is not a number") }
        case (let type, .literal(let text)):
            guard type.isInteger, Self.integer(text) != nil else {
                throw reject("default '\(text)' does not fit")
            }
        }
        if field.nullable != nil {
            switch field.type {
            case .string, .bytes, .records, .structure, .array: break
            case .bool, .int8, .int16, .uint16, .int32, .uint32, .int64, .float64, .uuid:
                throw reject("type \(field.type) cannot be null")
            }
        }
    }

    // MARK: Words

    private func type(_ text: Substring) throws(SchemaError) -> FieldType {
        if text.hasPrefix("[]") { return .array(try type(text.dropFirst(2))) }
        if let primitive = FieldType.primitives[String(text)] { return primitive }
        guard text.first?.isUppercase == true else { throw fail("unknown type '\(text)'") }
        return .structure(String(text))
    }

    static func structureName(_ type: FieldType) -> String? {
        switch type {
        case .structure(let name): name
        case .array(let element): structureName(element)
        case .bool, .int8, .int16, .uint16, .int32, .uint32, .int64, .float64, .string, .bytes, .records,
            .uuid:
            nil
        }
    }

    private func int(_ text: Substring) throws(SchemaError) -> Int {
        guard let value = Int(text) else { throw fail("'\(text)' is not a number") }
        return value
    }

    static func integer(_ text: String) -> Int? {
        text.hasPrefix("0x") ? Int(text.dropFirst(2), radix: 16) : Int(text)
    }

    private func range(_ text: Substring) throws(SchemaError) -> VersionRange {
        if text.hasSuffix("+") { return VersionRange(try int(text.dropLast()), VersionRange.open) }
        if let dash = text.firstIndex(of: "-") {
            let range = VersionRange(try int(text[..<dash]), try int(text[text.index(after: dash)...]))
            guard range.lower <= range.upper else { throw fail("'\(text)' is an empty range") }
            return range
        }
        let version = try int(text)
        return VersionRange(version, version)
    }

    static func trim(_ text: Substring) -> Substring {
        var text = text
        while let first = text.first, first == " " || first == "\t" { text.removeFirst() }
        while let last = text.last, last == " " || last == "\t" || last == "\r" { text.removeLast() }
        return text
    }

    static func words(_ text: Substring) -> [Substring] { text.split(separator: " ") }

    static func splitFirst(_ text: Substring) -> (Substring, Substring) {
        guard let blank = text.firstIndex(of: " ") else { return (text, "") }
        return (text[..<blank], trim(text[blank...]))
    }

    private static func splitNote(_ line: Substring) -> (Substring, String) {
        var previous: Character = "x"
        for index in line.indices {
            if line[index] == "/" && previous == "/" {
                return (
                    trim(line[..<line.index(before: index)]), String(trim(line[line.index(after: index)...]))
                )
            }
            previous = line[index]
        }
        return (line, "")
    }
}
