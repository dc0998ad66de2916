internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// What the clients of one simulation share: time, network, the history they leave, and where they are in the play.
// SAFETY: confined to the thread that runs the simulation.
final class World: @unchecked Sendable {
    enum Act: Int, Comparable {
        /// Clients work, faults happen.
        case play
        /// Faults are over, producers end; groups go on until they have read everything.
        case drain
        /// Bits have flipped in what is stored, and everything is read again.
        case rot
        /// Everybody ends.
        case over

        static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
    }

    let seed: UInt64
    let scheduler: Scheduler
    let network: VirtualNetwork
    let trace: Trace
    let random: SimulationRandom
    var act = Act.play
    private(set) var history = History()
    /// What the simulator itself found.
    private(set) var failures: [Failure] = []
    var topicIDs: [String: UniversalID] = [:]
    var topicNames: [UniversalID: String] = [:]
    /// What a ``TopicKeeper`` has created and not deleted.
    var currentTopic: String?
    private var nextValue: Int64 = 1
    /// Operations that sent something.
    private(set) var writeCount = 0
    /// Highest record of each partition that a read_committed consumer has seen.
    private(set) var lastVisible: [Place: Int64] = [:]
    /// Values that a read_committed consumer has seen, by topic.
    private(set) var visibleValues: [String: Set<Int64>] = [:]
    /// Highest committed offset that a group's members know of.
    private(set) var committed: [String: [Place: Int64]] = [:]
    private var marks: [Place: Mark] = [:]
    /// Topics whose deletion has been asked for, with when it was answered; never as long as it was not.
    var deletions: [String: Int64] = [:]

    /// Strikes when the next client asks for the end of a transaction.
    var commitFault: (() -> Void)?

    struct Failure: Equatable {
        var kind: String
        var detail: String
    }

    private struct Mark {
        var highWatermark: Int64
        var lastStable: Int64
        var at: Int64
    }

    init(seed: UInt64, scheduler: Scheduler, network: VirtualNetwork, trace: Trace) {
        self.seed = seed
        self.scheduler = scheduler
        self.network = network
        self.trace = trace
        random = SimulationRandom(seed: seed, purpose: "world")
    }

    var now: Int64 { scheduler.now }

    func stream(_ purpose: String) -> SimulationRandom { SimulationRandom(seed: seed, purpose: purpose) }

    func after(milliseconds: ClosedRange<Int64>, _ body: @escaping () -> Void) {
        scheduler.after(random.nanoseconds(milliseconds), body)
    }

    /// Lets virtual time pass.
    func pause(nanoseconds: Int64) async {
        await withCheckedContinuation { (waiter: CheckedContinuation<Void, Never>) in
            scheduler.after(nanoseconds) { waiter.resume() }
        }
    }

    func takeValue() -> Int64 {
        defer { nextValue += 1 }
        return nextValue
    }

    func fail(_ kind: String, _ detail: String) {
        trace.note("FAIL", "\(kind): \(detail)")
        if failures.count < 100 { failures.append(Failure(kind: kind, detail: detail)) }
    }

    /// A commit is about to be asked for; true if a fault happens on it.
    func takeCommitFault() -> Bool {
        guard let fault = commitFault else { return false }
        commitFault = nil
        fault()
        return true
    }

    // MARK: History

    func record(
        _ process: Int, since start: Int64, _ outcome: Outcome, isTransaction: Bool = false, _ steps: [Step]
    ) {
        trace.note("op", "p\(process) \(outcome.rawValue)\(isTransaction ? " txn" : "") \(steps.count)")
        for step in steps {
            switch step {
            case .send: writeCount += 1
            case .poll(let records):
                for record in records {
                    lastVisible[record.place] = max(lastVisible[record.place] ?? -1, record.offset)
                    visibleValues[record.place.topic, default: []].insert(record.value)
                }
            case .commit(let item) where outcome == .succeeded: noteCommitted(item)
            case .committed(let item): noteCommitted(item)
            case .subscribe, .assign, .rebalanced, .commit, .hold, .acquired, .settled, .sessionEnded, .deleted:
                break
            }
        }
        history.operations.append(
            Operation(
                process: process, start: start, end: now, outcome: outcome, isTransaction: isTransaction, steps: steps))
    }

    private func noteCommitted(_ item: GroupOffset) {
        committed[item.group, default: [:]][item.place] = max(
            committed[item.group]?[item.place] ?? -1, item.offset)
    }

    /// A request that was sent at `start` was served: the topic's deletion must not have been answered before.
    func checkExists(_ topic: String, askedAt start: Int64) {
        if let deleted = deletions[topic], deleted < start {
            fail("deleted-topic-served", "\(topic) was deleted \((start - deleted) / 1_000_000) ms before")
        }
    }

    func completeHistory() { history.isComplete = true }

    /// What a Fetch answer says of a partition: neither mark ever falls for who asked after the other had its
    /// answer (I3).
    func observe(_ place: Place, highWatermark: Int64, lastStable: Int64, askedAt start: Int64) {
        if let mark = marks[place], mark.at < start {
            if highWatermark < mark.highWatermark {
                fail("high-watermark-fell", "\(place) from \(mark.highWatermark) to \(highWatermark)")
            }
            if lastStable < mark.lastStable {
                fail("last-stable-offset-fell", "\(place) from \(mark.lastStable) to \(lastStable)")
            }
        }
        if lastStable > highWatermark {
            fail("last-stable-offset-above-high-watermark", "\(place) \(lastStable) > \(highWatermark)")
        }
        if highWatermark >= marks[place]?.highWatermark ?? -1 {
            marks[place] = Mark(
                highWatermark: highWatermark, lastStable: max(lastStable, marks[place]?.lastStable ?? -1), at: now)
        }
    }
}

extension ErrorCode {
    /// A client tries again, on the same connection or another.
    var asksForPatience: Bool {
        switch self {
        case .coordinatorLoadInProgress, .coordinatorNotAvailable, .notCoordinator, .concurrentTransactions,
            .notLeaderOrFollower, .notEnoughReplicas, .notEnoughReplicasAfterAppend, .requestTimedOut,
            .kafkaStorageError, .unknownTopicOrPartition, .unstableOffsetCommit, .leaderNotAvailable, .networkException:
            true
        case _: false
        }
    }
}
