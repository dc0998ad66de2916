import MartletLogModel

/// Patterns of a group on their way through the names of all topics, a bounded number of steps at a time.
struct PatternResolution {
    let catalog: TopicCatalog
    /// Patterns still to do, the next one last.
    private var rest: [String]
    private var current: (text: String, pattern: TopicPattern, next: Int, topics: Set<String>)?

    init(_ patterns: [String], _ catalog: TopicCatalog) {
        self.catalog = catalog
        rest = patterns.sorted(by: >)
    }

    var isDone: Bool { current == nil && rest.isEmpty }

    /// Works until `steps` are used up. Returns the patterns that are through.
    mutating func run(steps: inout Int) -> [(pattern: String, topics: Set<String>)] {
        var done: [(String, Set<String>)] = []
        while steps > 0 {
            if current == nil {
                guard let text = rest.popLast() else { break }
                do throws(PatternError) {
                    current = (text, try TopicPattern(text), 0, [])
                } catch {
                    // Patterns are checked before they are taken; one that an older release took matches nothing.
                    done.append((text, []))
                    continue
                }
            }
            guard var work = current.take() else { break }
            Self.match(&work.pattern, catalog, &work.next, &work.topics, &steps)
            if work.next == catalog.names.count {
                done.append((work.text, work.topics))
            } else {
                current = work
            }
        }
        return done
    }

    private static func match(
        _ pattern: inout TopicPattern, _ catalog: TopicCatalog, _ next: inout Int,
        _ topics: inout Set<String>,
        _ steps: inout Int
    ) {
        while steps > 0, next < catalog.names.count {
            let name = catalog.names[next]
            if pattern.matches(name, steps: &steps) { topics.insert(name) }
            next += 1
        }
    }
}

extension ConsumerGroup {
    /// Milliseconds between two looks at all patterns when topics come and go, where there are more topics than
    /// this: each look goes over every name. As rare as Kafka's.
    private static let patternRefreshMilliseconds: Int64 = 10_000
    private static let manyTopicsCount = 1_000

    /// Whether a heartbeat of this member should look at the patterns: one look goes over all members.
    func needsPatterns(of memberID: String, _ catalog: TopicCatalog, _ now: Instant) -> Bool {
        if let pattern = members[memberID]?.pattern, patterns[pattern] == nil { return true }
        return !patterns.isEmpty && resolvedVersion != catalog.version
            && nextPatternRefresh.map { now >= $0 } ?? true
    }

    /// Starts to match patterns that are new, at once, and all of them if topics have changed, now and then. A small
    /// catalog is through in the same event, so that the first answer has an assignment; otherwise a timer goes on
    /// with it in pieces.
    ///
    /// - Returns: whether some pattern turned out to mean other topics than before.
    mutating func refreshPatterns(_ catalog: TopicCatalog, _ outbox: inout Outbox) -> Bool {
        guard resolution == nil else { return false }
        let texts = Set(members.values.compactMap(\.pattern))
        guard !texts.isEmpty else { return false }
        var due = texts.filter { patterns[$0] == nil }
        if nextPatternRefresh.map({ outbox.now.instant >= $0 }) ?? true {
            due = texts.filter { patterns[$0]?.version != catalog.version }
            if catalog.names.count > Self.manyTopicsCount, !due.isEmpty {
                nextPatternRefresh = outbox.instant(inMilliseconds: Self.patternRefreshMilliseconds)
            }
        }
        if texts.allSatisfy({ patterns[$0]?.version == catalog.version }) { resolvedVersion = catalog.version }
        guard !due.isEmpty else { return false }
        resolution = PatternResolution(Array(due), catalog)
        return continueResolution(&outbox)
    }

    /// Some more steps; patterns that are through are written. Returns whether one means other topics than before:
    /// then the epoch must rise in the same batch.
    private mutating func continueResolution(_ outbox: inout Outbox) -> Bool {
        guard var work = resolution.take() else { return false }
        var hasChanged = false
        var steps = PatternLimits.stepsPerEvent
        for (pattern, topics) in work.run(steps: &steps) {
            guard members.values.contains(where: { $0.pattern == pattern }) else { continue }
            if (patterns[pattern]?.topics ?? []) != topics { hasChanged = true }
            write(
                .consumerPattern(
                    id, pattern,
                    ResolvedPattern(
                        topics: topics, version: work.catalog.version, resolvedAt: outbox.now.timestamp)))
        }
        if !work.isDone {
            resolution = work
            outbox.effects.append(.schedule(.patterns(group: id), at: outbox.now.instant))
        }
        return hasChanged
    }

    /// The timer of the resolution: goes on, and takes up patterns that came meanwhile.
    mutating func patternTimeIsUp(_ catalog: TopicCatalog, _ outbox: inout Outbox) {
        var hasChanged = continueResolution(&outbox)
        if resolution == nil, refreshPatterns(catalog, &outbox) { hasChanged = true }
        if hasChanged {
            checkedVersion = catalog.version
            bump("a topic pattern was resolved", nil, catalog.hash(of: subscribedTopics()), &outbox)
        }
    }

    /// Patterns nobody subscribes to any more.
    mutating func forgetUnusedPatterns() {
        if patterns.isEmpty { return }
        let used = Set(members.values.compactMap(\.pattern))
        for pattern in patterns.keys.sorted() where !used.contains(pattern) {
            write(.consumerPattern(id, pattern, nil))
        }
    }
}
