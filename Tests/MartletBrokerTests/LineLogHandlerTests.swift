import Logging
import MartletBroker
import Testing

@Suite struct `Log lines` {
    private struct Failure: Error, CustomStringConvertible {
        var description: String { "failed\n" }
    }

    @Test func `no client's words make lines of their own`() {
        #expect(LineLogHandler.escaped("plain ü") == "plain ü")
        #expect(LineLogHandler.escaped("a\n2026 error b\r\u{1b}[31m\u{2028}") == "a\\n2026 error b\\r\\u{1B}[31m\\u{2028}")
    }

    @Test func `whatever a line says is escaped, wherever it comes from`() {
        var handler = LineLogHandler(label: "test", level: .info)
        handler[metadataKey: "logger\n"] = "a\n"
        handler[metadataKey: "same"] = "logger"
        handler.metadataProvider = Logger.MetadataProvider { ["provider\n": "b\n", "same": "provider"] }
        let event = LogEvent(
            level: .info, message: "m\n", error: Failure(),
            metadata: ["event\n": ["c\n", ["d\n": "e\n"]], "same": "event"], source: "s", file: "f", function: "f", line: 1)
        let shown = handler.shown(event)
        #expect(shown.message == "m\\n" && shown.error == nil)
        #expect(
            shown.metadata == [
                "logger\\n": "a\\n", "provider\\n": "b\\n", "event\\n": ["c\\n", ["d\\n": "e\\n"]], "same": "event",
                "error.message": "failed\\n", "error.type": .string(String(reflecting: Failure.self)),
            ])
    }
}
