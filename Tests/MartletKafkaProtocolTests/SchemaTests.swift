import ProtogenCore
import Testing

private let sample = """
    # comment
    request ThingRequest {
        about     Does things.
        key       7
        versions  1-4
        advertise 0-4
        flexible  3+
        since     3  flexible

        // a note over
        // two lines
        Name     string                    // and behind
        Rack     string?  2+  default null  ignorable
        Count    int32  default -1
        Ids      []uuid  3+
        Extra    bytes  3+  tag 0
        Parts    []Part  nullable 2+ {
            Index  int32
            Gone   int16  1-2
            Where  Place
        }

        struct Place {
            Row  int8
        }
    }
    """

private func parse(_ text: String) throws -> [Message] { try SchemaParser.parse(file: "sample", text: text) }

/// `sample` with one replacement.
private func changed(_ part: String, _ other: String) throws -> [Message] {
    let range = try #require(sample.firstRange(of: part), "\(part) is not in the sample")
    return try parse(sample[..<range.lowerBound] + other + sample[range.upperBound...])
}

@Suite struct SchemaParserTests {
    @Test func `a schema is read with all its facts`() throws {
        let message = try #require(try parse(sample).first)
        #expect(message.kind == .request && message.name == "ThingRequest" && message.key == 7)
        #expect(message.versions == VersionRange(1, 4) && message.advertised == VersionRange(0, 4))
        #expect(message.flexible == 3 && message.since.first?.text == "flexible")
        #expect(message.fields.map(\.name) == ["Name", "Rack", "Count", "Ids", "Extra", "Parts"])
        #expect(message.fields[0].note == "a note over two lines and behind")
        #expect(
            message.fields[1].nullable == VersionRange(2, .max) && message.fields[1].defaultValue == .null)
        #expect(message.fields[1].ignorable && message.fields[2].defaultValue == .literal("-1"))
        #expect(message.fields[4].tag == 0 && message.fields[5].type == .array(.structure("Part")))
        #expect(message.structures.map(\.name) == ["Part", "Place"])
        #expect(message.structures[0].fields[1].versions == VersionRange(1, 2))
    }

    @Test(arguments: [
        ("Count    int32", "Count    int33", "unknown type"),
        ("default -1", "default x", "does not fit"),
        ("default null", "default 5", "quotes"),
        ("tag 0", "tag", "needs an argument"),
        ("3+  tag 0", "1+  tag 0", "need flexible versions"),
        ("Ids      []uuid", "Name     []uuid", "declared twice"),
        ("Where  Place", "Where  Nowhere", "no structure named"),
        ("Ids      []uuid", "Ids      [][]uuid", "arrays of arrays"),
        ("Ids      []uuid  3+", "Ids      []uuid  8+", "outside"),
        ("Count    int32", "Count    int32?", "cannot be null"),
        ("ignorable", "ignored", "unknown attribute"),
        ("versions  1-4", "versions  1+", "upper end"),
        ("about     Does things.\n", "\n", "header entries"),
        ("request ThingRequest {", "query ThingRequest {", "expected '<kind>"),
        ("since     3", "since     9", "outside versions"),
    ])
    func `a faulty schema is refused with a line`(_ part: String, _ other: String, _ text: String) throws {
        do {
            _ = try changed(part, other)
            Issue.record("accepted: \(other)")
        } catch let error as SchemaError {
            #expect(error.text.contains(text), "\(error)")
            #expect(error.line > 0)
        }
    }

    @Test func `a schema that ends too early is refused`() throws {
        #expect(throws: SchemaError.self) {
            try parse("request ThingRequest {\n about x\n versions 1\n flexible none\n\n A int8")
        }
    }

    @Test func `names become Swift names`() {
        #expect(SwiftNames.property("TopicId") == "topicID")
        #expect(SwiftNames.property("PartitionIds") == "partitionIDs")
        #expect(SwiftNames.property("ProducerIdCount") == "producerIDCount")
        #expect(SwiftNames.property("Identity") == "identity")
        #expect(SwiftNames.property("IdentityIdle") == "identityIdle")
        #expect(SwiftNames.property("Protocol") == "`protocol`")
        #expect(SwiftNames.property("memberId") == "memberID")
        #expect(SwiftNames.property("KRaftVersionFeature") == "kRaftVersionFeature")
        #expect(SwiftNames.errorConstant("OFFSET_OUT_OF_RANGE") == "offsetOutOfRange")
        #expect(SwiftNames.errorConstant("UNKNOWN_TOPIC_ID") == "unknownTopicID")
        #expect(SwiftNames.errorConstant("NONE") == "none")
    }

    @Test func `error codes must follow without gaps`() throws {
        let good = "-1 | A_B | final | text | remedy\n0 | NONE | retriable | text |\n"
        #expect(try ErrorTable.parse(file: "Errors", text: good).map(\.name) == ["A_B", "NONE"])
        for bad in [
            "0 | A | final | t\n", "0 | A | maybe | t | r\n", "0 | A | final | t |\n2 | B | final | t |\n",
            "0 | A | final | |\n",
        ] {
            #expect(throws: SchemaError.self) { try ErrorTable.parse(file: "Errors", text: bad) }
        }
    }
}

@Suite struct EvolutionTests {
    private func problems(_ part: String, _ other: String) throws -> [String] {
        EvolutionCheck.problems(from: try parse(sample), to: try changed(part, other))
    }

    @Test func `no change is no problem`() throws {
        #expect(EvolutionCheck.problems(from: try parse(sample), to: try parse(sample)).isEmpty)
    }

    @Test(arguments: [
        ("versions  1-4", "versions  1-5"),
        ("advertise 0-4", "advertise 1-4"),
        ("Does things.", "Does other things."),
        ("Extra    bytes  3+  tag 0", "Extra    bytes  3+  tag 0\n    More int8 4+ tag 1"),
        ("Gone   int16  1-2", "Gone   int16  2"),
    ])
    func `allowed changes pass`(_ part: String, _ other: String) throws {
        // Giving up version 1 takes the field's version along; the last sample alone would change version 1.
        var older = try parse(sample)
        if other.hasSuffix("int16  2") { older[0].versions = VersionRange(2, 4) }
        #expect(EvolutionCheck.problems(from: older, to: try changed(part, other)) == [])
    }

    @Test(arguments: [
        ("versions  1-4", "versions  1-3", "version 4 removed"),
        ("key       7", "key       8", "key changed"),
        ("flexible  3+", "flexible  2+", "flexible changed"),
        ("Count    int32  default -1\n", "\n", "fields changed"),
        ("Count    int32", "Count    int64", "type changed"),
        ("Count    int32", "Total    int32", "fields changed"),
        ("Count    int32", "Added    int8\n    Count    int32", "fields changed"),
        ("Rack     string?  2+", "Rack     string?  3+", "fields changed"),
        ("nullable 2+", "nullable 3+", "null no longer allowed"),
        ("nullable 2+", "nullable 1+", "null newly allowed"),
        ("tag 0", "tag 1", "tag changed"),
        ("Extra    bytes  3+  tag 0\n", "\n", "tagged field removed"),
        ("Extra    bytes  3+  tag 0", "Other    int8  3+  tag 0", "reused"),
        ("Row  int8", "Row  int16", "type changed"),
        ("Gone   int16  1-2", "Gone   int16  1-3", "fields changed"),
        ("request ThingRequest", "request OtherRequest", "removed"),
    ])
    func `changes to published versions are refused`(_ part: String, _ other: String, _ text: String) throws {
        let found = try problems(part, other)
        #expect(found.contains { $0.contains(text) }, "\(found)")
    }

    @Test func `moving a field is refused`() throws {
        let moved = try changed(
            "Count    int32  default -1\n    Ids      []uuid  3+",
            "Ids      []uuid  3+\n    Count    int32  default -1")
        #expect(!EvolutionCheck.problems(from: try parse(sample), to: moved).isEmpty)
    }

    @Test func `records on disks keep their old versions`() throws {
        let older = try parse(sample.replacingStart("request", with: "metadata"))
        var newer = older
        newer[0].versions = VersionRange(2, 4)
        #expect(EvolutionCheck.problems(from: older, to: newer).contains { $0.contains("on disks") })
        var request = try parse(sample)
        request[0].versions = VersionRange(2, 4)
        #expect(EvolutionCheck.problems(from: try parse(sample), to: request).isEmpty)
    }

    @Test func `the default of a tagged field is part of its bytes`() throws {
        let tagged = "Extra    int8  3+  tag 0"
        let older = try changed("Extra    bytes  3+  tag 0", tagged)
        let newer = try changed("Extra    bytes  3+  tag 0", tagged + "  default 5")
        #expect(EvolutionCheck.problems(from: older, to: newer).contains { $0.contains("default changed") })
    }
}

extension String {
    fileprivate func replacingStart(_ part: String, with other: String) -> String {
        guard let range = firstRange(of: part) else { return self }
        return self[..<range.lowerBound] + other + self[range.upperBound...]
    }
}
