/// Inclusive range of message versions; `upper == VersionRange.open` means "and all later ones".
package struct VersionRange: Equatable, Sendable, CustomStringConvertible {
    package static let open = Int.max
    package var lower: Int
    package var upper: Int

    package init(_ lower: Int, _ upper: Int) {
        self.lower = lower
        self.upper = upper
    }

    package func intersection(_ other: VersionRange) -> VersionRange? {
        let lower = max(self.lower, other.lower)
        let upper = min(self.upper, other.upper)
        return lower <= upper ? VersionRange(lower, upper) : nil
    }

    package func contains(_ version: Int) -> Bool { version >= lower && version <= upper }

    package var description: String {
        if upper == Self.open { return "\(lower)+" }
        return lower == upper ? "\(lower)" : "\(lower)-\(upper)"
    }
}

package indirect enum FieldType: Equatable, Sendable, CustomStringConvertible {
    case bool, int8, int16, uint16, int32, uint32, int64, float64, string, bytes, records, uuid
    case structure(String)
    case array(FieldType)

    static let primitives: [String: FieldType] = [
        "bool": .bool, "int8": .int8, "int16": .int16, "uint16": .uint16, "int32": .int32, "uint32": .uint32,
        "int64": .int64, "float64": .float64, "string": .string, "bytes": .bytes, "records": .records,
        "uuid": .uuid,
    ]

    package var description: String {
        switch self {
        case .structure(let name): name
        case .array(let element): "[]\(element)"
        case .bool: "bool"
        case .int8: "int8"
        case .int16: "int16"
        case .uint16: "uint16"
        case .int32: "int32"
        case .uint32: "uint32"
        case .int64: "int64"
        case .float64: "float64"
        case .string: "string"
        case .bytes: "bytes"
        case .records: "records"
        case .uuid: "uuid"
        }
    }

    var isInteger: Bool {
        switch self {
        case .int8, .int16, .uint16, .int32, .uint32, .int64: true
        case .bool, .float64, .string, .bytes, .records, .uuid, .structure, .array: false
        }
    }
}

package enum DefaultValue: Equatable, Sendable {
    /// The type's own: 0, false, "", empty, all fields at their defaults.
    case own
    case null
    case literal(String)
}

package struct Field: Equatable, Sendable {
    package var name: String
    package var type: FieldType
    /// Versions that carry the field; inside those of the structure around it.
    package var versions: VersionRange
    /// Versions in which the field may be null.
    package var nullable: VersionRange?
    package var tag: Int?
    package var defaultValue: DefaultValue
    /// Whether a value may be dropped silently when a version has no place for it.
    package var ignorable: Bool
    package var note: String
    package var line: Int
}

package struct Structure: Equatable, Sendable {
    package var name: String
    package var versions: VersionRange
    package var note: String
    package var fields: [Field]
}

package struct Message: Equatable, Sendable {
    package enum Kind: String, Sendable {
        case request, response
        /// Record of the cluster metadata log.
        case metadata
        /// Key or value of a record of a coordinator's topic.
        case coordinatorKey, coordinatorValue
        /// Anything else: control records, data inside other messages, files.
        case data
    }

    package var kind: Kind
    package var name: String
    package var about: String
    /// API key, or record type; `nil` if there is none.
    package var key: Int?
    package var versions: VersionRange
    /// Range told to clients if it is not `versions`.
    package var advertised: VersionRange?
    /// First flexible version.
    package var flexible: Int?
    package var since: [(version: Int, text: String)]
    package var fields: [Field]
    /// In the order in which they are declared; names are unique in the message.
    package var structures: [Structure]

    package static func == (left: Message, right: Message) -> Bool {
        left.kind == right.kind && left.name == right.name && left.about == right.about
            && left.key == right.key && left.versions == right.versions && left.advertised == right.advertised
            && left.flexible == right.flexible && left.fields == right.fields
            && left.structures == right.structures
            && left.since.elementsEqual(right.since) { $0.version == $1.version && $0.text == $1.text }
    }

    package func structure(_ name: String) -> Structure? { structures.first { $0.name == name } }
}

package struct SchemaError: Error, Equatable, CustomStringConvertible {
    package var file: String
    package var line: Int
    package var text: String

    package init(file: String, line: Int, text: String) {
        self.file = file
        self.line = line
        self.text = text
    }

    package var description: String { line > 0 ? "\(file):\(line): \(text)" : "\(file): \(text)" }
}
