import MartletTestSupport
import Testing

@testable import MartletCoordinators

private func matches(_ pattern: String, _ name: String) throws -> Bool {
    var compiled = try TopicPattern(pattern)
    var steps = 1_000_000
    return compiled.matches(name, steps: &steps)
}

@Suite struct `Topic patterns` {
    @Test(arguments: [
        ("", "", "a"), ("orders", "orders", "order"), ("orders.*", "orders-eu", "my-orders"),
        ("^orders$", "orders", "orders2"), ("a|bc", "bc", "abc"), ("(a|b)c", "bc", "cc"),
        ("[a-c]+", "abccba", "abcd"), ("[^a-c]+", "xyz", "xay"), ("a{2,3}", "aaa", "aaaa"),
        ("a{2}", "aa", "a"), ("a{2,}", "aaaaa", "a"), ("a{,2}", "a{,2}", "aa"), ("(?i)AbC", "aBc", "abd"),
        ("a(?i)b|c", "aB", "AB"), ("a(?i:b)c", "aBc", "aBC"), ("(?:ab)*", "abab", "aba"),
        ("(?P<x>a)b", "ab", "b"), ("(?<x>a)b", "ab", "b"), ("\\d+\\.\\w", "12.a", "12xa"),
        ("\\Qa.b\\E.", "a.bx", "axbx"), ("\\x61\\x{62}", "ab", "aa"), ("[[:alpha:]]+", "abc", "ab1"),
        ("[[:^alpha:]]+", "12-", "1a"), ("[]a]+", "]a", "b"), ("[a-]+", "a-", "b"),
        ("\\bfoo\\b.*", "foo-x", "foox"),
        ("foo\\B.*", "foox", "foo-x"), ("\\pL+\\pN", "ab1", "1a"), ("\\p{Lu}\\P{Lu}", "Ab", "ab"),
        ("a*?", "aaa", "b"), ("a.c", "abc", "ac"), ("(a|ab)(c|bcd)", "abcd", "abd"),
        ("(a*)*b", "aaab", "aaa"), ("é|x", "x", "e"), ("[\\d_-]+", "1_-2", "a"), ("a\\Az?", "never", "a"),
        ("\\Aab\\z", "ab", "abc"), ("(|a)+", "aaa", "ab"), ("x*", "", "y"), ("\\101", "A", "B"),
    ])
    func `the whole name must match`(pattern: String, yes: String, no: String) throws {
        if yes != "never" { #expect(try matches(pattern, yes), "\(pattern) should match \(yes)") }
        #expect(try !matches(pattern, no), "\(pattern) should not match \(no)")
    }

    @Test(arguments: [
        "(", ")", "a)", "[", "[a", "[z-a]", "*", "+a", "a**", "a{2}{3}", "a{1001}", "a{3,2}", "\\", "\\1",
        "(a)\\1", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?P=x)", "(?z)", "\\q", "\\p{Nope}", "[[:nope:]]",
        "(?P<>a)", "\\xg1", "\\x{110000}", "(?i", "a{1000}{1000}", "((a{100}){100}){100}",
        "((((){1000}){1000}){1000}){1000}",
    ])
    func `what RE2 does not take is refused`(pattern: String) {
        #expect(TopicPattern.problem(pattern) != nil, "\(pattern)")
    }

    @Test func `size is bounded`() throws {
        #expect(TopicPattern.problem(String(repeating: "a", count: PatternLimits.textBytesLimit + 1)) != nil)
        #expect(TopicPattern.problem(String(repeating: "(", count: 5_000)) != nil)
        #expect(
            TopicPattern.problem(String(repeating: "(?:", count: 200) + String(repeating: ")", count: 200))
                != nil)
        #expect(TopicPattern.problem("(a{900}){5}") != nil)
        #expect(TopicPattern.problem((0..<100).map { "topic-number-\($0)" }.joined(separator: "|")) == nil)
    }

    /// The patterns that make backtracking matchers run for centuries.
    @Test func `a long name makes no more states than are kept`() throws {
        var pattern = try TopicPattern(".*a.{12}")
        var steps = 100_000_000
        // Each place has another history of the last twelve characters.
        var random = SeededGenerator(seed: 7)
        let name = String(decoding: (0..<8_000).map { _ in Bool.random(using: &random) ? 97 : 98 as UInt8 }, as: UTF8.self)
        let bytes = Array(name.utf8)
        #expect(pattern.matches(name, steps: &steps) == (bytes[bytes.count - 13] == 97))
        #expect(pattern.stateCount <= PatternLimits.stateLimit + 1)
    }

    @Test func `a match that costs much stops when its steps are used up`() throws {
        var pattern = try TopicPattern("(a?b?){1000}c")
        let name = String(repeating: "ab", count: 900)
        var match = TopicPattern.Match(name)
        var pieceCount = 0
        var result: Bool?
        while result == nil {
            var steps = PatternLimits.stepsPerEvent
            result = pattern.goOn(&match, steps: &steps)
            #expect(steps > -2 * pattern.instructionCount)
            pieceCount += 1
        }
        #expect(result == false && pieceCount > 10)
    }

    @Test(arguments: ["(a*)*b", "(a|aa)+b", "(.*)*x", "(a?){200}a{200}b", "([a-z]+)*[0-9]", "(x+x+)+y"])
    func `no pattern takes more than program times name`(pattern: String) throws {
        var compiled = try TopicPattern(pattern)
        let name = String(repeating: "a", count: 249)
        var steps = 0
        #expect(!compiled.matches(name, steps: &steps))
        #expect(-steps <= (compiled.instructionCount + 2) * 252)
        // The second time everything is known.
        var again = 0
        _ = compiled.matches(name, steps: &again)
        #expect(-again <= 2 * 252)
    }

    /// Against a matcher that tries everything, on patterns small enough for that.
    @Test(arguments: 1...200 as ClosedRange<UInt64>)
    func `agrees with a naive matcher`(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let pattern = randomPattern(&random, depth: 3)
        let node = try PatternParser.parse(pattern)
        var compiled = try TopicPattern(pattern)
        for _ in 0..<40 {
            let name = String(
                (0..<Int.random(in: 0...6, using: &random)).map { _ in
                    "abA-".randomElement(using: &random) ?? "a"
                })
            let bytes = Array(name.utf8)
            var steps = 1_000_000
            #expect(
                compiled.matches(name, steps: &steps) == naive(node, bytes, 0).contains(bytes.count),
                "seed \(seed): \(pattern) on \(name)")
            // Interrupted after each step it says the same.
            var match = TopicPattern.Match(name)
            var result: Bool?
            repeat {
                steps = 1
                result = compiled.goOn(&match, steps: &steps)
            } while result == nil
            #expect(result == naive(node, bytes, 0).contains(bytes.count), "seed \(seed): \(pattern) on \(name)")
        }
    }

    private func randomPattern(_ random: inout SeededGenerator, depth: Int) -> String {
        let atoms = ["a", "b", ".", "[ab]", "[^a]", "\\w", "^", "$", "\\b", "\\B", "-", "(?i:a)"]
        guard depth > 0 else { return atoms.randomElement(using: &random) ?? "a" }
        let inner = { (random: inout SeededGenerator) in self.randomPattern(&random, depth: depth - 1) }
        switch Int.random(in: 0..<6, using: &random) {
        case 0: return inner(&random) + inner(&random)
        case 1: return "(\(inner(&random))|\(inner(&random)))"
        case 2: return "(\(inner(&random)))*"
        case 3: return "(\(inner(&random)))+"
        case 4: return "(\(inner(&random))){1,2}"
        case _: return "(\(inner(&random)))?" + inner(&random)
        }
    }

    /// Ends of all matches that start at `start`.
    private func naive(_ node: PatternNode, _ text: [UInt8], _ start: Int) -> Set<Int> {
        switch node {
        case .empty: return [start]
        case .characters(let set): return start < text.count && set.contains(text[start]) ? [start + 1] : []
        case .assertion(let assertion):
            let before = start > 0 && PatternParser.word.contains(text[start - 1])
            let after = start < text.count && PatternParser.word.contains(text[start])
            let holds =
                switch assertion {
                case .textStart, .lineStart: start == 0
                case .textEnd, .lineEnd: start == text.count
                case .wordBoundary: before != after
                case .noWordBoundary: before == after
                }
            return holds ? [start] : []
        case .sequence(let parts):
            return parts.reduce([start]) { ends, part in
                ends.reduce(into: []) { $0.formUnion(naive(part, text, $1)) }
            }
        case .alternatives(let branches):
            return branches.reduce(into: []) { $0.formUnion(naive($1, text, start)) }
        case .repetition(let node, let minimum, let maximum):
            var ends: Set<Int> = [start]
            for _ in 0..<minimum { ends = ends.reduce(into: []) { $0.formUnion(naive(node, text, $1)) } }
            var all = ends
            for _ in 0..<((maximum ?? minimum + text.count + 1) - minimum) {
                ends = ends.reduce(into: []) { $0.formUnion(naive(node, text, $1)) }
                all.formUnion(ends)
            }
            return all
        }
    }
}
