/// Bounds of one pattern: a heartbeat that brings one must never keep a core busy.
package enum PatternLimits {
    /// Bytes of a pattern's text. Kafka's clients send a few dozen.
    package static let textBytesLimit = 8 * 1024
    /// Groups inside each other: the parser calls itself.
    package static let nestingLimit = 100
    /// Largest count in braces, as in RE2.
    package static let repetitionLimit = 1_000
    /// Instructions of a compiled pattern: with the length of a topic name it bounds the steps of one match.
    package static let instructionLimit = 4_096
    /// Visits of the compiler: nothing repeated a thousand times a thousand times emits no instruction at all.
    static let compilerVisitLimit = 4 * instructionLimit
    /// States that the matcher keeps, of about 600 bytes each; beyond, it starts over.
    static let stateLimit = 512
    /// Steps of matching in one event of the shard: about a millisecond.
    package static let stepsPerEvent = 200_000
}

/// A compiled topic pattern, matched against whole names in linear time.
///
/// Thompson's construction; the machine of sets of instructions is made deterministic as it is used, within
/// ``PatternLimits/stateLimit``. A step costs one table look-up, or, the first time, at most one pass over the
/// program: never more than program length times name length, whatever the pattern is.
package struct TopicPattern {
    enum Instruction: Equatable {
        case characters(CharacterSet128)
        case assertion(PatternNode.Assertion)
        case split(Int, Int)
        case jump(Int)
        case match
    }

    private let program: [Instruction]
    private var states: [State] = []
    private var stateNumbers: [StateKey: Int] = [:]
    private var mark: [UInt32]
    private var generation: UInt32 = 0

    /// What came before the place the machine is at: decides about `^` and `\b`.
    private enum Before: UInt8 { case start, word, other, newline }

    /// Instructions the machine stands before, assertions and jumps not yet followed, and what was read last.
    private struct StateKey: Hashable {
        var instructions: [UInt16]
        var before: Before
    }

    private struct State {
        var key: StateKey
        /// Next state by character: -1 not known yet, -2 dead.
        var next: [Int32]
        var accepts: Bool?
    }

    package init(_ text: String) throws(PatternError) {
        var compiler = PatternCompiler()
        program = try compiler.compile(try PatternParser.parse(text))
        mark = Array(repeating: 0, count: program.count)
    }

    package static func problem(_ text: String) -> String? {
        do throws(PatternError) {
            _ = try TopicPattern(text)
            return nil
        } catch {
            return error.reason
        }
    }

    var instructionCount: Int { program.count }

    /// A match of one name on its way. While it lasts, the pattern is matched against no other name.
    package struct Match {
        fileprivate var rest: String.UTF8View.SubSequence
        /// `nil` before the first step.
        fileprivate var state: Int?

        package init(_ name: String) { rest = name.utf8[...] }
    }

    /// Whether the whole of `name` matches. Takes what it cost from `steps`, which may become negative: by as much as
    /// the program is long times the name.
    package mutating func matches(_ name: String, steps: inout Int) -> Bool {
        var match = Match(name)
        var left = Int.max
        defer { steps -= Int.max - left }
        guard let matches = goOn(&match, steps: &left) else {
            preconditionFailure("a match did not end within \(Int.max) steps")
        }
        return matches
    }

    /// Goes on with a match while there are steps, which it takes what it cost from: fewer than zero by no more than the
    /// program is long. `nil` when they are used up before the end of the name.
    package mutating func goOn(_ match: inout Match, steps: inout Int) -> Bool? {
        var current: Int
        if let state = match.state {
            current = state
        } else {
            if states.count >= PatternLimits.stateLimit {
                states.removeAll(keepingCapacity: true)
                stateNumbers.removeAll(keepingCapacity: true)
            }
            if states.isEmpty { _ = number(StateKey(instructions: [0], before: .start)) }
            current = 0
            steps -= 1
        }
        while let byte = match.rest.first {
            guard steps > 0 else {
                match.state = current
                return nil
            }
            guard byte < 128 else { return false }
            var next = states[current].next[Int(byte)]
            steps -= 1
            if next == -1 {
                steps -= program.count
                // A long name, too, may not make more states than are kept.
                if states.count >= PatternLimits.stateLimit { current = startOver(at: current) }
                next = advance(current, byte)
                states[current].next[Int(byte)] = next
            }
            if next == -2 { return false }
            current = Int(next)
            match.rest.removeFirst()
        }
        if let accepts = states[current].accepts { return accepts }
        steps -= program.count
        let accepts = reachable(states[current].key, next: nil).contains { program[Int($0)] == .match }
        states[current].accepts = accepts
        return accepts
    }

    /// Forgets all states but the one that the match stands at; returns its new number.
    private mutating func startOver(at current: Int) -> Int {
        let key = states[current].key
        states.removeAll(keepingCapacity: true)
        stateNumbers.removeAll(keepingCapacity: true)
        _ = number(StateKey(instructions: [0], before: .start))
        return number(key)
    }

    /// For tests: states that are kept.
    var stateCount: Int { states.count }

    private mutating func number(_ key: StateKey) -> Int {
        if let known = stateNumbers[key] { return known }
        states.append(State(key: key, next: Array(repeating: -1, count: 128), accepts: nil))
        stateNumbers[key] = states.count - 1
        return states.count - 1
    }

    private mutating func advance(_ state: Int, _ byte: UInt8) -> Int32 {
        var instructions: [UInt16] = []
        for place in reachable(states[state].key, next: byte) {
            if case .characters(let set) = program[Int(place)], set.contains(byte) {
                instructions.append(place + 1)
            }
        }
        guard !instructions.isEmpty else { return -2 }
        instructions.sort()
        let before: Before = byte == 10 ? .newline : PatternParser.word.contains(byte) ? .word : .other
        return Int32(number(StateKey(instructions: instructions, before: before)))
    }

    /// Places that read a character or match, from those of the state, given what stands around.
    private mutating func reachable(_ key: StateKey, next: UInt8?) -> [UInt16] {
        generation &+= 1
        var found: [UInt16] = []
        var stack = Array(key.instructions.reversed())
        while let place = stack.popLast() {
            let index = Int(place)
            if mark[index] == generation { continue }
            mark[index] = generation
            switch program[index] {
            case .characters, .match: found.append(place)
            case .jump(let target): stack.append(UInt16(target))
            case .split(let first, let second):
                stack.append(UInt16(second))
                stack.append(UInt16(first))
            case .assertion(let assertion):
                if Self.holds(assertion, key.before, next) { stack.append(place + 1) }
            }
        }
        return found
    }

    private static func holds(_ assertion: PatternNode.Assertion, _ before: Before, _ next: UInt8?) -> Bool {
        let isBoundary = (before == .word) != (next.map { PatternParser.word.contains($0) } ?? false)
        return switch assertion {
        case .textStart: before == .start
        case .textEnd: next == nil
        case .lineStart: before == .start || before == .newline
        case .lineEnd: next == nil || next == 10
        case .wordBoundary: isBoundary
        case .noWordBoundary: !isBoundary
        }
    }
}

/// Turns a parsed pattern into instructions.
struct PatternCompiler {
    private var program: [TopicPattern.Instruction] = []
    private var visits = 0

    mutating func compile(_ node: PatternNode) throws(PatternError) -> [TopicPattern.Instruction] {
        try add(node)
        try emit(.match)
        return program
    }

    private mutating func emit(_ instruction: TopicPattern.Instruction) throws(PatternError) {
        guard program.count < PatternLimits.instructionLimit else { throw tooLarge }
        program.append(instruction)
    }

    private var tooLarge: PatternError {
        PatternError(
            reason: "the pattern is too large: it needs more than \(PatternLimits.instructionLimit) steps")
    }

    private mutating func add(_ node: PatternNode) throws(PatternError) {
        visits += 1
        guard visits <= PatternLimits.compilerVisitLimit else { throw tooLarge }
        switch node {
        case .empty: break
        case .characters(let set): try emit(.characters(set))
        case .assertion(let assertion): try emit(.assertion(assertion))
        case .sequence(let parts): for part in parts { try add(part) }
        case .alternatives(let branches): try addAlternatives(branches)
        case .repetition(let node, let minimum, let maximum): try addRepetition(node, minimum, maximum)
        }
    }

    private mutating func addAlternatives(_ branches: [PatternNode]) throws(PatternError) {
        var ends: [Int] = []
        for (index, branch) in branches.enumerated() {
            guard index + 1 < branches.count else {
                try add(branch)
                break
            }
            let split = program.count
            try emit(.split(split + 1, 0))
            try add(branch)
            ends.append(program.count)
            try emit(.jump(0))
            program[split] = .split(split + 1, program.count)
        }
        for end in ends { program[end] = .jump(program.count) }
    }

    private mutating func addRepetition(
        _ node: PatternNode, _ minimum: Int, _ maximum: Int?
    ) throws(PatternError) {
        for _ in 0..<minimum { try add(node) }
        guard let maximum else {
            let split = program.count
            try emit(.split(split + 1, 0))
            try add(node)
            try emit(.jump(split))
            program[split] = .split(split + 1, program.count)
            return
        }
        var splits: [Int] = []
        for _ in minimum..<max(minimum, maximum) {
            splits.append(program.count)
            try emit(.split(program.count + 1, 0))
            try add(node)
        }
        for split in splits { program[split] = .split(split + 1, program.count) }
    }
}
