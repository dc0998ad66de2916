import MartletLogModel
import Testing

@Suite struct OffsetTests {
    @Test func `offsets count and compare like numbers`() {
        #expect(Offset(5) + 3 == Offset(8))
        #expect(Offset(8) - Offset(5) == 3)
        #expect(Offset.zero < Offset(1) && Offset(7).description == "7")
    }

    @Test func `moving an offset past its range stops the process`() async {
        await #expect(processExitsWith: .failure) { _ = Offset(Int64.max) + 1 }
    }
}

@Suite struct InstantTests {
    @Test func `an instant far in the future saturates`() {
        let now = Instant(nanoseconds: 5)
        #expect(now.advanced(byMilliseconds: 2).nanoseconds == 2_000_005)
        #expect(now.advanced(byMilliseconds: Int64.max).nanoseconds == Int64.max)
        #expect(Instant(nanoseconds: Int64.max).advanced(byMilliseconds: 1).nanoseconds == Int64.max)
        #expect(now.advanced(byMilliseconds: 1500).milliseconds(since: now) == 1500)
    }
}

@Suite struct UniversalIDTests {
    @Test(arguments: [
        (UInt64(0), UInt64(0), "AAAAAAAAAAAAAAAAAAAAAA"),
        (UInt64.max, UInt64.max, "_____________________w"),
        (UInt64(0x0102_0304_0506_0708), UInt64(0x090a_0b0c_0d0e_0f10), "AQIDBAUGBwgJCgsMDQ4PEA"),
    ])
    func `the text form is unpadded base64url of the bytes`(_ high: UInt64, _ low: UInt64, _ text: String) {
        let id = UniversalID(high: high, low: low)
        #expect(id.description == text)
        #expect(UniversalID(text) == id)
    }

    @Test(arguments: ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAA!", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA=="])
    func `anything else is refused`(_ text: String) { #expect(UniversalID(text) == nil) }

    @Test func `random ids have version 4, read back, and never look like an option`() {
        var generator = Steps(state: 1)
        for _ in 0..<2_000 {
            let id = UniversalID.random(using: &generator)
            #expect(id.high >> 12 & 0xf == 4 && id.low >> 62 == 2)
            #expect(!id.description.hasPrefix("-") && UniversalID(id.description) == id)
        }
    }

    private struct Steps: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state
        }
    }
}

@Suite struct TopicNameTests {
    @Test(arguments: ["orders", "a", "A.b_c-9", String(repeating: "x", count: 249), "..."])
    func `legal names pass`(_ name: String) { #expect(TopicName.problem(name) == nil) }

    @Test(arguments: ["", ".", "..", "a b", "a/b", "ä", "a\u{0}", String(repeating: "x", count: 250)])
    func `names that could harm a folder are refused with a reason`(_ name: String) {
        #expect(TopicName.problem(name)?.isEmpty == false)
    }

    @Test func `names that differ in dot and underscore only collide`() {
        #expect(TopicName.collides("a.b_c", "a_b.c"))
        #expect(!TopicName.collides("a.b", "a-b") && !TopicName.collides("a.b", "a.bc"))
    }

    @Test func `brokers' own topics are known`() {
        #expect(TopicName.isInternal("__consumer_offsets") && !TopicName.isInternal("consumer_offsets"))
    }
}

@Suite struct TopicPartitionTests {
    @Test func `the text is the folder's name`() {
        #expect(TopicPartition("a-b", 3).description == "a-b-3")
        #expect(TopicPartition("a", 9) < TopicPartition("b", 0) && TopicPartition("a", 2) < TopicPartition("a", 10))
    }
}
