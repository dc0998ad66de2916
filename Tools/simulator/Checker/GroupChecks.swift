/// Owners of partitions and committed offsets.
enum GroupChecks {
    private struct Holder: Hashable {
        var group: String
        var place: Place
    }

    /// From the answer that first showed the partition as the member's to the last request the broker accepted
    /// while it was: the broker knew it as the owner all the time between.
    private struct Tenure {
        var member: String
        var from: Int64
        var to: Int64
        var operations: [Int]
    }

    /// Two members of a group held a partition at the same time (I17). A member that lost its partitions without
    /// knowing is no owner: nothing of it was accepted any more. If something was, its commit for instance, it
    /// shows here.
    static func owners(_ history: History) -> [Finding] {
        var tenures: [Holder: [Tenure]] = [:]
        var open: [Holder: [String: Tenure]] = [:]
        var held: [String: [String: Set<Place>]] = [:]
        for (index, operation) in history.operations.enumerated() {
            for case .hold(let group, let member, _, let places) in operation.steps {
                let now = Set(places)
                for place in held[group]?[member, default: []].subtracting(now).sorted() ?? [] {
                    let holder = Holder(group: group, place: place)
                    if let tenure = open[holder]?.removeValue(forKey: member) {
                        tenures[holder, default: []].append(tenure)
                    }
                }
                held[group, default: [:]][member] = now
                for place in places {
                    let holder = Holder(group: group, place: place)
                    if var tenure = open[holder]?[member] {
                        tenure.to = max(tenure.to, operation.start)
                        tenure.operations = [tenure.operations[0], index]
                        open[holder]?[member] = tenure
                    } else {
                        open[holder, default: [:]][member] = Tenure(
                            member: member, from: operation.end, to: operation.end, operations: [index])
                    }
                }
            }
        }
        for (holder, rest) in open { tenures[holder, default: []] += rest.values }
        var findings: [Finding] = []
        for (holder, all) in tenures.sorted(by: { ($0.key.group, $0.key.place) < ($1.key.group, $1.key.place) }) {
            let sorted = all.sorted { ($0.from, $0.member) < ($1.from, $1.member) }
            var latest: Tenure?
            for tenure in sorted {
                if let before = latest, before.member != tenure.member, tenure.from < before.to {
                    findings.append(
                        Finding(
                            .twoOwners,
                            "\(holder.place) of group \(holder.group) was \(before.member)'s and \(tenure.member)'s",
                            operations: before.operations + tenure.operations))
                }
                if latest.map({ $0.to < tenure.to }) ?? true { latest = tenure }
            }
        }
        return findings
    }

    private struct Commit {
        var offset: Int64
        var operation: Int
        var start: Int64
        var end: Int64
        var outcome: Outcome
    }

    /// What was committed against what is read back (I14, I15, I18). An owner goes on from the committed offset,
    /// so what is acknowledged of a group never falls; a lower one is that of a member that should have been fenced.
    static func offsets(_ history: History, _ log: ObservedLog) -> [Finding] {
        var commits: [Holder: [Commit]] = [:]
        for (index, operation) in history.operations.enumerated() {
            for case .commit(let item) in operation.steps {
                commits[Holder(group: item.group, place: item.place), default: []].append(
                    Commit(
                        offset: item.offset, operation: index, start: operation.start, end: operation.end,
                        outcome: operation.outcome))
            }
        }
        let shown = firstSightings(history, log)
        var findings: [Finding] = []
        // When it was last seen that a commit of unknown end had arrived late: the member goes on from there.
        var fallen: [Holder: Int64] = [:]
        for (index, operation) in history.operations.enumerated() where operation.outcome == .succeeded {
            for case .committed(let read) in operation.steps {
                let holder = Holder(group: read.group, place: read.place)
                let known = commits[holder] ?? []
                let name = "\(read.group) \(read.place)"
                if read.offset >= 0, !known.contains(where: { $0.offset == read.offset && $0.outcome != .failed }) {
                    findings.append(
                        Finding(
                            .abortedOffset, "\(name) is at \(read.offset), which nobody has committed",
                            operations: known.filter { $0.offset == read.offset }.map(\.operation) + [index]))
                }
                if let higher = known.last(where: {
                    $0.outcome == .succeeded && $0.end < operation.start && $0.offset > read.offset
                        && $0.end >= fallen[holder] ?? .min
                }) {
                    if mayFollow(read.offset, higher, in: known) {
                        fallen[holder] = operation.start
                    } else {
                        findings.append(
                            Finding(
                                .offsetRegression, "\(name) is at \(read.offset) after \(higher.offset)",
                                operations: [higher.operation, index]))
                    }
                }
                if let torn = known.last(where: {
                    $0.outcome == .unknown && $0.offset > read.offset && (shown[$0.operation] ?? .max) < operation.start
                }) {
                    findings.append(
                        Finding(
                            .tornTransaction,
                            "\(name) is at \(read.offset), but records sent together with \(torn.offset) were read",
                            operations: [torn.operation, index]))
                }
            }
        }
        return findings
    }

    /// A commit of the offset was under way together with `higher`, or nobody knows when it arrived: then it may
    /// have been the later one, by the same member.
    private static func mayFollow(_ offset: Int64, _ higher: Commit, in commits: [Commit]) -> Bool {
        commits.contains { commit in
            guard commit.offset == offset else { return false }
            switch commit.outcome {
            case .unknown: return true
            case .succeeded: return commit.start <= higher.end && commit.end >= higher.start
            case .failed: return false
            }
        }
    }

    /// When something of an operation was first read, by operation.
    private static func firstSightings(_ history: History, _ log: ObservedLog) -> [Int: Int64] {
        var shown: [Int: Int64] = [:]
        for (key, found) in log.sightings {
            guard let senders = log.senders[key], senders.count == 1, let sender = senders.first,
                history.operations[sender].isTransaction
            else { continue }
            let end = found.map { history.operations[$0.operation].end }.min() ?? .max
            shown[sender] = min(shown[sender] ?? .max, end)
        }
        return shown
    }
}
