/// Finds in a history what a Kafka broker must never let happen.
///
/// Pure: the same history gives the same findings, whether the simulator made it or a run against real processes.
/// All consumers of the history read committed records. What the rules need of it: values are unique within a
/// topic among operations that took effect; a process does one thing at a time.
///
/// Legal, and therefore not looked for: records of others between two sends (`int-send-skip`), interleaved
/// writes (`G0`, `G1c` with write-write edges), skips and repeats across a rebalance.
package enum Checker {
    package static func check(_ history: History) -> CheckResult {
        let log = ObservedLog(history)
        var findings = log.conflicts
        findings += log.duplicates()
        findings += log.lostWrites()
        if history.isComplete { findings += log.unseen() }
        findings += log.abortedReads()
        findings += PollOrder.check(history, log)
        findings += SendOrder.check(history)
        findings += ReadCycles.check(history, log)
        findings += GroupChecks.owners(history)
        findings += GroupChecks.offsets(history, log)
        findings += ShareChecks.check(history, log)
        findings.sort { ($0.anomaly, $0.operations.first ?? 0) < ($1.anomaly, $1.operations.first ?? 0) }
        return CheckResult(findings: findings, counts: counts(history))
    }

    private static func counts(_ history: History) -> CheckCounts {
        var counts = CheckCounts()
        for operation in history.operations {
            counts.operations += 1
            if operation.outcome == .succeeded { counts.acknowledgedOperations += 1 }
            if operation.isTransaction {
                switch operation.outcome {
                case .succeeded: counts.committedTransactions += 1
                case .failed: counts.abortedTransactions += 1
                case .unknown: counts.unknownTransactions += 1
                }
            }
            for step in operation.steps {
                switch step {
                case .send:
                    counts.sends += 1
                    if operation.outcome == .succeeded { counts.acknowledgedSends += 1 }
                case .poll(let records): counts.polledRecords += records.count
                case .commit: counts.offsetCommits += 1
                case .rebalanced: counts.rebalances += 1
                case .subscribe, .assign, .committed, .hold, .acquired, .settled, .sessionEnded, .deleted: break
                }
            }
        }
        return counts
    }
}

/// A value's identity: unique within its topic.
struct ValueKey: Hashable, Comparable {
    var topic: String
    var value: Int64

    static func < (left: Self, right: Self) -> Bool { (left.topic, left.value) < (right.topic, right.value) }
}

/// What is known of the logs from all acknowledgements and all polls together.
struct ObservedLog {
    struct Send {
        var operation: Int
        var place: Place
        var value: Int64
        var offset: Int64?
    }

    struct Sighting {
        var place: Place
        var offset: Int64
        var operation: Int
    }

    private let history: History
    private(set) var conflicts: [Finding] = []
    /// Polled offsets of each partition, ascending, without repeats.
    private(set) var visibleOffsets: [Place: [Int64]] = [:]
    /// Where a value was polled; the first sighting of each place.
    private(set) var sightings: [ValueKey: [Sighting]] = [:]
    private(set) var sends: [Send] = []
    private(set) var senders: [ValueKey: [Int]] = [:]
    private var deletedTopics: Set<String> = []

    init(_ history: History) {
        self.history = history
        var contents: [Place: [Int64: (value: Int64, operation: Int)]] = [:]
        var polled: [Place: Set<Int64>] = [:]
        func put(_ place: Place, _ offset: Int64, _ value: Int64, _ operation: Int, _ conflicts: inout [Finding]) {
            if let known = contents[place]?[offset] {
                if known.value != value {
                    conflicts.append(
                        Finding(
                            .inconsistentOffsets, "\(place) has \(known.value) and \(value) at offset \(offset)",
                            operations: [known.operation, operation]))
                }
            } else {
                contents[place, default: [:]][offset] = (value, operation)
            }
        }
        for (index, operation) in history.operations.enumerated() {
            for step in operation.steps {
                switch step {
                case .send(let place, let value, let offset):
                    sends.append(Send(operation: index, place: place, value: value, offset: offset))
                    senders[ValueKey(topic: place.topic, value: value), default: []].append(index)
                    if let offset { put(place, offset, value, index, &conflicts) }
                case .poll(let records):
                    for record in records {
                        put(record.place, record.offset, record.value, index, &conflicts)
                        guard polled[record.place, default: []].insert(record.offset).inserted else { continue }
                        sightings[ValueKey(topic: record.place.topic, value: record.value), default: []].append(
                            Sighting(place: record.place, offset: record.offset, operation: index))
                    }
                case .deleted(let topic):
                    deletedTopics.insert(topic)
                case .subscribe, .assign, .rebalanced, .commit, .committed, .hold, .acquired, .settled,
                    .sessionEnded:
                    break
                }
            }
        }
        visibleOffsets = polled.mapValues { $0.sorted() }
    }

    func isSeen(_ place: Place, _ value: Int64) -> Bool {
        sightings[ValueKey(topic: place.topic, value: value)] != nil
    }

    /// A value at several places: read there, or acknowledged there by an operation that took effect.
    func duplicates() -> [Finding] {
        var places: [ValueKey: [Sighting]] = sightings
        for send in sends where history.operations[send.operation].outcome == .succeeded {
            guard let offset = send.offset else { continue }
            let key = ValueKey(topic: send.place.topic, value: send.value)
            if places[key]?.contains(where: { $0.place == send.place && $0.offset == offset }) != true {
                places[key, default: []].append(
                    Sighting(place: send.place, offset: offset, operation: send.operation))
            }
        }
        return places.filter { $0.value.count > 1 }.sorted { $0.key < $1.key }.map { key, found in
            Finding(
                .duplicate,
                "\(key.value) is at " + found.map { "\($0.place) \($0.offset)" }.joined(separator: " and "),
                operations: found.map(\.operation))
        }
    }

    /// Operations that took effect: acknowledged, or a transaction of unknown end of which something was seen.
    private func tookEffect() -> [Bool] {
        var result = history.operations.map { $0.outcome == .succeeded }
        for send in sends where !result[send.operation] {
            let operation = history.operations[send.operation]
            guard operation.isTransaction, operation.outcome == .unknown, isSeen(send.place, send.value),
                senders[ValueKey(topic: send.place.topic, value: send.value)]?.count == 1
            else { continue }
            result[send.operation] = true
        }
        return result
    }

    private var unseenSends: [Send] {
        let effective = tookEffect()
        return sends.filter { effective[$0.operation] && !isSeen($0.place, $0.value) }
    }

    func lostWrites() -> [Finding] {
        unseenSends.compactMap { send in
            guard let offset = send.offset, let highest = visibleOffsets[send.place]?.last, offset < highest else {
                return nil
            }
            let operation = history.operations[send.operation]
            let kind = operation.outcome == .succeeded ? "acknowledged" : "part of a visible transaction"
            return Finding(
                .lostWrite, "\(send.value) at \(send.place) \(offset) is \(kind), offset \(highest) was read, it was not",
                operations: [send.operation])
        }
    }

    func unseen() -> [Finding] {
        unseenSends.filter { send in
            if deletedTopics.contains(send.place.topic) { return false }
            guard let offset = send.offset, let highest = visibleOffsets[send.place]?.last else { return true }
            return offset >= highest
        }.map { send in
            Finding(
                .unseen,
                "\(send.value) at \(send.place) \(send.offset.map(String.init) ?? "?") was acknowledged and never read",
                operations: [send.operation])
        }
    }

    func abortedReads() -> [Finding] {
        sightings.sorted { $0.key < $1.key }.compactMap { key, found in
            guard let operations = senders[key], let reader = found.first,
                operations.allSatisfy({ history.operations[$0].outcome == .failed })
            else { return nil }
            return Finding(
                .abortedRead, "\(key.value) was read at \(reader.place) \(reader.offset), but its send failed",
                operations: operations + [reader.operation])
        }
    }

    /// Whether a record that anybody has read lies strictly between two offsets.
    func hasVisible(_ place: Place, after low: Int64, before high: Int64) -> Int64? {
        guard let offsets = visibleOffsets[place] else { return nil }
        var lower = 0
        var upper = offsets.count
        while lower < upper {
            let middle = (lower + upper) / 2
            if offsets[middle] > low { upper = middle } else { lower = middle + 1 }
        }
        return lower < offsets.count && offsets[lower] < high ? offsets[lower] : nil
    }
}

/// Order in which consumers see records.
enum PollOrder {
    private struct Position {
        /// Last offset read, or the one before the first to be read.
        var last: Int64
        var operation: Int
    }

    static func check(_ history: History, _ log: ObservedLog) -> [Finding] {
        var findings: [Finding] = []
        var positions: [Int: [Place: Position]] = [:]
        for (index, operation) in history.operations.enumerated() {
            var sent: Set<ValueKey> = []
            for step in operation.steps {
                switch step {
                case .subscribe, .rebalanced:
                    positions[operation.process] = [:]
                case .assign(let place, let offset):
                    positions[operation.process, default: [:]][place] = Position(last: offset - 1, operation: index)
                case .send(let place, let value, _):
                    if operation.isTransaction { sent.insert(ValueKey(topic: place.topic, value: value)) }
                case .poll(let records):
                    for record in records {
                        if sent.contains(ValueKey(topic: record.place.topic, value: record.value)) {
                            findings.append(
                                Finding(
                                    .precommittedRead, "\(record.value) at \(record.place) \(record.offset)",
                                    operations: [index]))
                        }
                        let before = positions[operation.process]?[record.place]
                        positions[operation.process, default: [:]][record.place] = Position(
                            last: record.offset, operation: index)
                        guard let before else { continue }
                        let isInner = before.operation == index
                        if record.offset <= before.last {
                            findings.append(
                                Finding(
                                    isInner ? .innerNonmonotonicPoll : .nonmonotonicPoll,
                                    "process \(operation.process) read \(record.place) \(record.offset) after \(before.last)",
                                    operations: isInner ? [index] : [before.operation, index]))
                        } else if let skipped = log.hasVisible(record.place, after: before.last, before: record.offset) {
                            findings.append(
                                Finding(
                                    isInner ? .innerPollSkip : .pollSkip,
                                    "process \(operation.process) read \(record.place) \(record.offset) after "
                                        + "\(before.last) without \(skipped)",
                                    operations: isInner ? [index] : [before.operation, index]))
                        }
                    }
                case .commit, .committed, .hold, .acquired, .settled, .sessionEnded, .deleted:
                    break
                }
            }
        }
        return findings
    }
}

/// Order of offsets that a process's own sends get.
enum SendOrder {
    static func check(_ history: History) -> [Finding] {
        var findings: [Finding] = []
        var latest: [Int: [Place: (offset: Int64, operation: Int)]] = [:]
        for (index, operation) in history.operations.enumerated() {
            for case .send(let place, _, let offset?) in operation.steps {
                if let before = latest[operation.process]?[place], offset <= before.offset {
                    let isInner = before.operation == index
                    findings.append(
                        Finding(
                            isInner ? .innerNonmonotonicSend : .nonmonotonicSend,
                            "process \(operation.process) sent to \(place) \(offset) after \(before.offset)",
                            operations: isInner ? [index] : [before.operation, index]))
                }
                latest[operation.process, default: [:]][place] = (offset, index)
            }
        }
        return findings
    }
}

/// Circles of transactions that read each other's writes.
enum ReadCycles {
    static func check(_ history: History, _ log: ObservedLog) -> [Finding] {
        var successors: [[Int]] = Array(repeating: [], count: history.operations.count)
        for (reader, operation) in history.operations.enumerated() where operation.isTransaction {
            for case .poll(let records) in operation.steps {
                for record in records {
                    let key = ValueKey(topic: record.place.topic, value: record.value)
                    for writer in log.senders[key] ?? []
                    where writer != reader && history.operations[writer].isTransaction
                        && history.operations[writer].outcome != .failed
                    {
                        successors[writer].append(reader)
                    }
                }
            }
        }
        return components(successors).map { component in
            Finding(.readCycle, "\(component.count) transactions read from each other", operations: component)
        }
    }

    /// Strongly connected components of more than one node (Tarjan 1972), without recursion.
    private static func components(_ successors: [[Int]]) -> [[Int]] {
        var result: [[Int]] = []
        var number = Array(repeating: -1, count: successors.count)
        var low = number
        var onStack = Array(repeating: false, count: successors.count)
        var stack: [Int] = []
        var next = 0
        for root in successors.indices where number[root] < 0 && !successors[root].isEmpty {
            var work: [(node: Int, edge: Int)] = [(root, 0)]
            while let (node, edge) = work.last {
                if edge == 0, number[node] < 0 {
                    number[node] = next
                    low[node] = next
                    next += 1
                    stack.append(node)
                    onStack[node] = true
                }
                if edge < successors[node].count {
                    work[work.count - 1].edge += 1
                    let target = successors[node][edge]
                    if number[target] < 0 {
                        work.append((target, 0))
                    } else if onStack[target] {
                        low[node] = min(low[node], number[target])
                    }
                    continue
                }
                work.removeLast()
                if let parent = work.last?.node { low[parent] = min(low[parent], low[node]) }
                guard low[node] == number[node] else { continue }
                var component: [Int] = []
                while let top = stack.popLast() {
                    onStack[top] = false
                    component.append(top)
                    if top == node { break }
                }
                if component.count > 1 { result.append(component.sorted()) }
            }
        }
        return result
    }
}
