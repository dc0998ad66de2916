/// Deliveries of share groups (KIP-932).
enum ShareChecks {
    /// How often a record is delivered before the group gives it up (`group.share.delivery.count.limit`).
    static let deliveryLimit = 5

    private struct Source: Hashable, Comparable {
        var group: String
        var place: Place

        static func < (left: Self, right: Self) -> Bool { (left.group, left.place) < (right.group, right.place) }
    }

    fileprivate struct Acquisition {
        var process: Int
        var operation: Int
        var start: Int64
        var end: Int64
        var count: Int
        /// The member certainly has it until then.
        var heldUntil: Int64
    }

    fileprivate struct Settled {
        var operation: Int
        var end: Int64
        var outcome: Outcome
        var kind: Settlement
    }

    /// What happened to one record.
    fileprivate struct Story {
        var acquisitions: [Acquisition] = []
        var settlements: [Settled] = []
    }

    static func check(_ history: History, _ log: ObservedLog) -> [Finding] {
        var stories: [Source: [Int64: Story]] = [:]
        /// Times of lost answers that may have given out records.
        var lost: [Source: [Int64]] = [:]
        /// Ends of sessions, by group and process.
        var ends: [String: [Int: [(start: Int64, end: Int64)]]] = [:]
        /// Topics that each group reads, whether anything came or not.
        var topics: [String: Set<String>] = [:]
        for (index, operation) in history.operations.enumerated() {
            for step in operation.steps {
                if case .acquired(let group, let place, _, _, _, _) = step {
                    topics[group, default: []].insert(place.topic)
                }
                switch step {
                case .acquired(let group, let place, _, _, _, _) where operation.outcome != .succeeded:
                    lost[Source(group: group, place: place), default: []].append(operation.end)
                case .acquired(let group, let place, let first, let last, let count, let lock) where first <= last:
                    let acquisition = Acquisition(
                        process: operation.process, operation: index, start: operation.start, end: operation.end,
                        count: count, heldUntil: operation.start + lock * 1_000_000)
                    for offset in first...last {
                        stories[Source(group: group, place: place), default: [:]][offset, default: Story()]
                            .acquisitions.append(acquisition)
                    }
                case .settled(let group, let place, let first, let last, let kind) where first <= last:
                    let source = Source(group: group, place: place)
                    for offset in first...last {
                        var story = stories[source]?[offset] ?? Story()
                        story.settlements.append(
                            Settled(operation: index, end: operation.end, outcome: operation.outcome, kind: kind))
                        story.limit(operation.process, operation.start)
                        stories[source, default: [:]][offset] = story
                    }
                case .sessionEnded(let group):
                    ends[group, default: [:]][operation.process, default: []].append((operation.start, operation.end))
                case _: break
                }
            }
        }
        var findings: [Finding] = []
        for (source, records) in stories.sorted(by: { $0.key < $1.key }) {
            for (offset, story) in records.sorted(by: { $0.key < $1.key }) {
                var story = story
                for index in story.acquisitions.indices {
                    let one = story.acquisitions[index]
                    guard let end = ends[source.group]?[one.process]?.first(where: { $0.end >= one.end }) else { continue }
                    story.acquisitions[index].heldUntil = min(one.heldUntil, end.start)
                }
                findings += story.findings("\(source.group) \(source.place) \(offset)")
            }
        }
        guard history.isComplete else { return findings }
        let sent = timesOfSending(history, log)
        for (group, names) in topics.sorted(by: { $0.key < $1.key }) {
            for place in log.visibleOffsets.keys.sorted() where names.contains(place.topic) {
                let source = Source(group: group, place: place)
                findings += notDelivered(
                    group, place, stories[source] ?? [:], lost[source] ?? [], sent[place] ?? [:], log)
            }
        }
        return findings
    }

    /// When each record that was read began to be sent.
    private static func timesOfSending(_ history: History, _ log: ObservedLog) -> [Place: [Int64: Int64]] {
        var times: [Place: [Int64: Int64]] = [:]
        for (key, sightings) in log.sightings {
            guard let time = log.senders[key]?.map({ history.operations[$0].start }).min() else { continue }
            for sighting in sightings { times[sighting.place, default: [:]][sighting.offset] = time }
        }
        return times
    }

    /// Records that the group should have been done with at the end, also of a partition that it was never given.
    private static func notDelivered(
        _ group: String, _ place: Place, _ records: [Int64: Story], _ lost: [Int64], _ sent: [Int64: Int64],
        _ log: ObservedLog
    ) -> [Finding] {
        var findings: [Finding] = []
        for offset in log.visibleOffsets[place] ?? [] {
            let story = records[offset] ?? Story()
            let began = story.acquisitions.first?.end ?? sent[offset] ?? .min
            guard !story.isDone(unknownDeliveries: lost.count { $0 >= began }) else { continue }
            let reader = log.sightings.values.joined().first { $0.place == place && $0.offset == offset }
            findings.append(
                Finding(
                    .notDelivered,
                    "\(group) \(place) \(offset) was acquired \(story.acquisitions.count) times and is neither "
                        + "settled nor given up",
                    operations: story.acquisitions.map(\.operation) + (reader.map { [$0.operation] } ?? [])))
        }
        return findings
    }
}

extension ShareChecks.Story {
    /// The member's hold ended at `time` or later.
    mutating func limit(_ process: Int, _ time: Int64) {
        guard let last = acquisitions.lastIndex(where: { $0.process == process }) else { return }
        acquisitions[last].heldUntil = min(acquisitions[last].heldUntil, time)
    }

    func isDone(unknownDeliveries: Int) -> Bool {
        if settlements.contains(where: { $0.kind != .release && $0.outcome != .failed }) { return true }
        let highest = acquisitions.map(\.count).max() ?? 0
        return highest + unknownDeliveries >= ShareChecks.deliveryLimit
    }

    func findings(_ name: String) -> [Finding] {
        var found: [Finding] = []
        if let settled = settlements.first(where: { $0.kind != .release && $0.outcome == .succeeded }),
            let again = acquisitions.first(where: { $0.start > settled.end })
        {
            found.append(
                Finding(
                    .deliveredAgain, "\(name) was delivered after it was \(settled.kind.rawValue)ed",
                    operations: [settled.operation, again.operation]))
        }
        if let often = acquisitions.first(where: { $0.count > ShareChecks.deliveryLimit }) {
            found.append(
                Finding(
                    .deliveredTooOften, "\(name) was delivered \(often.count) times", operations: [often.operation]))
        }
        for (index, one) in acquisitions.enumerated() {
            for other in acquisitions[(index + 1)...]
            where max(one.end, other.end) < min(one.heldUntil, other.heldUntil) {
                found.append(
                    Finding(
                        .twoHolders, "\(name) was \(one.process)'s and \(other.process)'s at the same time",
                        operations: [one.operation, other.operation]))
                return found
            }
        }
        return found
    }
}
