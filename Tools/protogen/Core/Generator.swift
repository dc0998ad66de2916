/// The whole generation as a pure function: texts of `Protocol/` in, texts of Swift files out. Paths are
/// relative to the package.
package enum Generator {
    package static let messagesFolder = "Protocol/Messages"
    package static let recordsFolder = "Protocol/Records"
    package static let errorsFile = "Protocol/Errors"
    package static let outputFolders = [
        "Sources/MartletKafkaProtocol/Generated", "Sources/MartletLogModel/Generated",
        "Tests/MartletKafkaProtocolTests/Generated",
    ]

    package struct Schema: Sendable {
        /// Path within `Protocol/`, for example `Messages/01_Fetch`, with the messages of that file.
        package var files: [(source: String, messages: [Message])]
        package var errors: [ErrorEntry]

        package var messages: [Message] { files.flatMap(\.messages) }
    }

    /// `inputs`: path → text of `Protocol/Errors` and of every file under `Messages` and `Records`.
    package static func parse(_ inputs: [String: String]) throws(SchemaError) -> Schema {
        var schema = Schema(files: [], errors: [])
        for path in inputs.keys.sorted() {
            let text = inputs[path] ?? ""
            if path == errorsFile {
                schema.errors = try ErrorTable.parse(file: path, text: text)
            } else if path.hasPrefix(messagesFolder + "/") || path.hasPrefix(recordsFolder + "/") {
                let messages = try SchemaParser.parse(file: path, text: text)
                try check(path, messages)
                schema.files.append((String(path.dropFirst("Protocol/".count)), messages))
            }
        }
        return schema
    }

    /// Path → text of every generated file.
    package static func generate(_ schema: Schema) -> [String: String] {
        var outputs: [String: String] = [:]
        let folder = "Sources/MartletKafkaProtocol/Generated"
        for (source, messages) in schema.files {
            let name = source.split(separator: "/").last ?? ""
            outputs["\(folder)/\(name).swift"] = SwiftWriter.file(for: messages, source: source)
        }
        outputs["\(folder)/APIKey.swift"] = TableWriter.apiKeys(schema.messages)
        outputs["\(folder)/AnyRequest.swift"] = TableWriter.anyRequest(schema.messages)
        outputs["\(folder)/MetadataRecord.swift"] = TableWriter.metadataRecord(schema.messages)
        outputs["Sources/MartletLogModel/Generated/ErrorCodes.swift"] = ErrorTable.swift(schema.errors)
        for (name, text) in RandomWriter.files(schema.messages) {
            outputs["Tests/MartletKafkaProtocolTests/Generated/\(name)"] = text
        }
        return outputs
    }

    /// File and content agree: `NN_Name` holds request and response of that key, a record file its record.
    private static func check(_ path: String, _ messages: [Message]) throws(SchemaError) {
        let file = String(path.split(separator: "/").last ?? "")
        func reject(_ text: String) -> SchemaError { SchemaError(file: path, line: 0, text: text) }
        guard path.hasPrefix(messagesFolder) else {
            guard messages.count == 1, messages[0].name == file else {
                throw reject("a record file holds the one record it is named after")
            }
            return
        }
        guard messages.count == 2, messages[0].kind == .request, messages[1].kind == .response,
            let key = messages[0].key, messages[1].key == key
        else { throw reject("a message file holds a request and a response of the same key") }
        let name = String(messages[0].name.dropLast("Request".count))
        let number = key < 10 ? "0\(key)" : "\(key)"
        guard messages[0].name == name + "Request", messages[1].name == name + "Response",
            file == "\(number)_\(name)"
        else { throw reject("expected \(number)_\(name) with \(name)Request and \(name)Response") }
        guard messages[0].versions == messages[1].versions, messages[0].flexible == messages[1].flexible
        else {
            throw reject("request and response must have the same versions and flexible versions")
        }
    }
}
