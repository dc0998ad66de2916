import ArgumentParser
import MartletClient
import MartletMarketData
import NIOCore
import Testing

@testable import martlet

@Suite struct CLIFormatTests {
    private let fields = RecordFormat.Fields(
        topic: "orders", partition: 3, offset: 42, timestamp: 1_580_360_400_123,
        key: ByteBuffer(string: "AAPL"),
        value: ByteBuffer(string: "100"), headers: [RecordHeader("a", "1"), RecordHeader("b", nil)])

    private func render(_ format: String, _ fields: RecordFormat.Fields) throws -> String {
        var output = ByteBuffer()
        try RecordFormat(format).write(fields, to: &output)
        return String(buffer: output)
    }

    @Test func `every letter of a format string prints its part of the record`() throws {
        #expect(
            try render("%t %p %o %T %D %k %K %s %S %h %H %%\\t\\x41\\\\\\n", fields)
                == "orders 3 42 1580360400123 2020-01-30T05:00:00.123Z AAPL 4 100 3 a=1,b=NULL 2 %\tA\\\n")
        var bare = fields
        bare.key = nil
        bare.value = nil
        #expect(try render("[%k %K %s %S]", bare) == "[ -1  -1]")
    }

    @Test(arguments: ["%", "%z", "\\", "\\q", "\\x4", "\\xzz"]) func `a wrong format string is refused`(
        text: String
    ) {
        #expect(throws: CommandFailure.self) { try RecordFormat(text) }
    }

    @Test func `records print as JSON, binary ones in base64`() throws {
        var binary = fields
        binary.value = ByteBuffer(bytes: [0xff, 0x00, 0x80, 0x7f])
        let line = RecordFormat.json(binary).line
        #expect(line.contains(#""key":"AAPL""#))
        #expect(line.contains(#""value":"/wCAfw==","valueEncoding":"base64""#))
        #expect(line.contains(#"{"name":"b","value":null}"#))
    }

    @Test func `base64 has the RFC's vectors`() {
        for (text, encoded) in [
            ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            #expect(Base64.encode(Array(text.utf8)) == encoded)
        }
    }

    @Test func `JSON escapes what it must and keeps the order of members`() {
        let value = JSONValue.object([
            ("z", .string("a\"\\\n\u{1}é")), ("a", .array([.integer(-1), .bool(true), .null, .number(1.5)])),
            ("e", .array([])),
        ])
        #expect(value.line == #"{"z":"a\"\\\n\u0001é","a":[-1,true,null,1.5],"e":[]}"#)
        #expect(value.pretty.hasPrefix("{\n  \"z\": "))
    }

    @Test func `tables align text left and numbers right`() {
        var table = TextTable("NAME", "COUNT#", "")
        table.add("a", "5", "")
        table.add("longer", "12345", "x")
        #expect(table.text == "NAME    COUNT\na           5\nlonger  12345  x\n")
    }

    @Test func `times parse and print in UTC`() {
        for (text, milliseconds) in [
            ("1970-01-01", 0), ("2026-01-31T09:30:00Z", 1_769_851_800_000),
            ("2026-01-31T09:30", 1_769_851_800_000),
            ("2026-01-31T10:30:00.25+01:00", 1_769_851_800_250), ("1969-12-31T23:59:59.999Z", -1),
            ("2024-02-29", 1_709_164_800_000),
        ] as [(String, Int64)] {
            #expect(CivilTime.parse(text) == milliseconds, "\(text)")
        }
        #expect(CivilTime.text(milliseconds: 1_769_851_800_250) == "2026-01-31T09:30:00.250Z")
        #expect(CivilTime.text(milliseconds: -1) == "1969-12-31T23:59:59.999Z")
        for text in [
            "", "2026", "2026-13-01", "2023-02-29", "2026-01-31T25:00", "2026-01-31T09:30:00Zx", "now",
        ] {
            #expect(CivilTime.parse(text) == nil, "\(text)")
        }
        for day in stride(from: -200_000, through: 200_000, by: 9_973) {
            let milliseconds = Int64(day) * 86_400_000 + 1
            #expect(CivilTime.parse(CivilTime.text(milliseconds: milliseconds)) == milliseconds)
        }
    }

    @Test func `offsets are read in all their forms`() throws {
        #expect(try OffsetChoice("earliest") == .earliest)
        #expect(try OffsetChoice("end") == .latest)
        #expect(try OffsetChoice("17") == .at(17))
        #expect(try OffsetChoice("-5") == .fromEnd(5))
        #expect(try OffsetChoice("@99") == .time(.init(milliseconds: 99)))
        #expect(try OffsetChoice("1970-01-02") == .time(.init(milliseconds: 86_400_000)))
        #expect(throws: CommandFailure.self) { try OffsetChoice("soon") }
    }

    @Test func `Kafka's tool names become our nouns and verbs`() {
        #expect(
            KafkaToolNames.rewrite([
                "kafka-topics.sh", "--bootstrap-server", "a:1", "--create", "--topic", "t",
            ])
                == ["topic", "create", "--bootstrap-server", "a:1", "--topic", "t"])
        #expect(
            KafkaToolNames.rewrite(["kafka-console-consumer", "--topic", "t"]) == ["consume", "--topic", "t"])
        #expect(
            KafkaToolNames.rewrite([
                "kafka-consumer-groups", "--reset-offsets", "--group", "g", "--to-earliest",
            ])
                == ["group", "reset-offsets", "--group", "g", "--to-earliest"])
        #expect(KafkaToolNames.rewrite(["topic", "--list"]) == ["topic", "--list"])
        #expect(KafkaToolNames.rewrite([]) == [])
    }

    @Test func `lines split into key and value at the first separator`() throws {
        func split(_ line: String, _ separator: String?, emptyAsNull: Bool = false) throws -> [String?] {
            let (key, value) = try LineRecord.split(
                ByteBuffer(string: line), separator: separator.map { Array($0.utf8) },
                emptyAsNull: emptyAsNull, number: 7)
            return [key.map { String(buffer: $0) }, value.map { String(buffer: $0) }]
        }
        #expect(try split("a:b:c", ":") == ["a", "b:c"])
        #expect(try split("a=>b", "=>") == ["a", "b"])
        #expect(try split("a:", ":", emptyAsNull: true) == ["a", nil])
        #expect(try split(":b", ":") == ["", "b"])
        #expect(try split("plain", nil) == [nil, "plain"])
        let failure = #expect(throws: CommandFailure.self) { try split("none", ":") }
        #expect(failure?.cause.contains("line 7") == true)
    }

    @Test func `the ready line is found only when it is whole`() {
        func address(_ text: String) -> String? { ReadyLine.address(in: ByteBuffer(string: text)) }
        #expect(address("starting\nready 127.0.0.1:9092\nmore\n") == "127.0.0.1:9092")
        #expect(address("ready 127.0.0.1:90") == nil)
        #expect(address("not ready at all\n") == nil)
    }

    @Test func `the last lines of a text are whole lines`() {
        func last(_ text: String, _ count: Int) -> String {
            String(buffer: LastLines.of(ByteBuffer(string: text), count: count))
        }
        #expect(last("a\nb\nc\n", 2) == "b\nc\n")
        #expect(last("a\nb", 1) == "b")
        #expect(last("a\nb\n", 9) == "a\nb\n")
        #expect(last("a\n", 0) == "")
    }

    @Test func `numbers for people`() {
        #expect(Decimals.text(1.005, 1) == "1.0")
        #expect(Decimals.text(-0.04, 1) == "0.0")
        #expect(Decimals.text(1234.5678, 2) == "1234.57")
        #expect(Decimals.grouped(-1_234_567) == "-1,234,567")
        #expect(Decimals.bytes(1536) == "1.5 KiB")
    }

    @Test(arguments: ["0x", "fast", "-1x", "", "nan", "inf", "0.0000000001", "1e-300x", "1e300"])
    func `a speed that is none is refused`(text: String) {
        #expect(throws: CommandFailure.self) { try ReplaySpeed.parse(text) }
    }

    @Test func `speeds are max or a multiple`() throws {
        #expect(try ReplaySpeed.parse("max") == .max)
        #expect(try ReplaySpeed.parse("2.5x") == .times(2.5))
        #expect(try ReplaySpeed.parse("60") == .times(60))
    }

    @Test func `every command of the help has an abstract`() {
        func check(_ command: any ParsableCommand.Type) {
            #expect(!command.configuration.abstract.isEmpty, "\(command)")
            for sub in command.configuration.subcommands { check(sub) }
        }
        check(Martlet.self)
    }
}
