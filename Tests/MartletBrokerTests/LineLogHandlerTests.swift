import MartletBroker
import Testing

@Suite struct `Log lines` {
    @Test func `no client's words make lines of their own`() {
        #expect(LineLogHandler.escaped("plain ü") == "plain ü")
        #expect(LineLogHandler.escaped("a\n2026 error b\r\u{1b}[31m\u{2028}") == "a\\n2026 error b\\r\\u{1B}[31m\\u{2028}")
    }
}
