import MartletChecker
import Testing

/// Hand-made histories: each anomaly is found, and what is legal is not taken for one.
@Suite struct CheckerTests {
    private let here = Place("t", 0)
    private let there = Place("t", 1)

    /// Operations that follow each other on one clock.
    private func history(_ operations: [Operation], isComplete: Bool = false) -> History {
        var sorted = operations
        for index in sorted.indices where sorted[index].start < 0 {
            sorted[index].start = Int64(index) * 10
            sorted[index].end = Int64(index) * 10 + 5
        }
        return History(operations: sorted, isComplete: isComplete)
    }

    private func operation(
        _ process: Int, transaction: Bool = false, at times: ClosedRange<Int64>? = nil, _ steps: Step...
    ) -> MartletChecker.Operation {
        operation(process, .succeeded, transaction: transaction, at: times, steps)
    }

    private func operation(
        _ process: Int, _ outcome: Outcome, transaction: Bool = false, _ steps: Step...
    ) -> MartletChecker.Operation {
        operation(process, outcome, transaction: transaction, at: nil, steps)
    }

    private func operation(
        _ process: Int, _ outcome: Outcome, transaction: Bool, at times: ClosedRange<Int64>?, _ steps: [Step]
    ) -> MartletChecker.Operation {
        MartletChecker.Operation(
            process: process, start: times?.lowerBound ?? -1, end: times?.upperBound ?? -1, outcome: outcome,
            isTransaction: transaction, steps: steps)
    }

    private typealias Operation = MartletChecker.Operation

    private func poll(_ records: (Place, Int64, Int64)...) -> Step {
        .poll(records.map { SeenRecord($0.0, $0.1, $0.2) })
    }

    private func expect(
        _ anomalies: Set<Anomaly>, _ history: History, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        let result = Checker.check(history)
        #expect(result.anomalies == anomalies, "\(result.findings)", sourceLocation: sourceLocation)
        for finding in result.findings {
            #expect(!finding.operations.isEmpty, sourceLocation: sourceLocation)
            #expect(
                finding.operations.allSatisfy(history.operations.indices.contains), sourceLocation: sourceLocation)
        }
    }

    @Test func `an ordinary history is clean`() {
        let clean = history(
            [
                operation(1, .send(here, value: 1, offset: 0)),
                operation(1, transaction: true, .send(here, value: 2, offset: 1), .send(there, value: 3, offset: 0)),
                operation(2, .assign(here, from: 0), poll((here, 0, 1), (here, 1, 2))),
                operation(3, .subscribe(["t"]), poll((there, 0, 3)), .commit(GroupOffset("g", there, 1))),
                operation(3, .committed(GroupOffset("g", there, 1))),
            ], isComplete: true)
        expect([], clean)
        let counts = Checker.check(clean).counts
        #expect(counts.sends == 3)
        #expect(counts.acknowledgedSends == 3)
        #expect(counts.polledRecords == 3)
        #expect(counts.committedTransactions == 1)
        #expect(counts.offsetCommits == 1)
    }

    @Test func `two values at one offset`() {
        expect(
            [.inconsistentOffsets],
            history([
                operation(1, poll((here, 0, 1))),
                operation(2, poll((here, 0, 2))),
            ]))
        expect(
            [.inconsistentOffsets],
            history([
                operation(1, .send(here, value: 1, offset: 7)),
                operation(2, .send(here, value: 2, offset: 7)),
            ]))
    }

    @Test func `one value at two offsets`() {
        expect([.duplicate], history([operation(1, poll((here, 0, 1), (here, 4, 1)))]))
        expect([.duplicate], history([operation(1, poll((here, 0, 1))), operation(2, poll((there, 9, 1)))]))
        expect(
            [.duplicate],
            history([operation(1, .send(here, value: 1, offset: 0)), operation(2, poll((here, 1, 1)))]))
    }

    @Test func `a value sent again after its transaction was aborted is no duplicate`() {
        expect(
            [],
            history([
                operation(1, .failed, transaction: true, .send(here, value: 1, offset: 0)),
                operation(1, transaction: true, .send(here, value: 1, offset: 2)),
                operation(2, poll((here, 2, 1))),
            ]))
    }

    @Test func `an acknowledged value below what was read is lost`() {
        let sent = [
            operation(1, .send(here, value: 1, offset: 0)), operation(1, .send(here, value: 2, offset: 1)),
        ]
        expect([.lostWrite], history(sent + [operation(2, .assign(here, from: 1), poll((here, 1, 2)))]))
        expect([], history(sent + [operation(2, .assign(here, from: 0), poll((here, 0, 1)))]))
        expect([], history([operation(1, .unknown, .send(here, value: 1, offset: 0)), sent[1], operation(2, poll((here, 1, 2)))]))
    }

    @Test func `part of a visible transaction is lost`() {
        let torn = [
            operation(1, .unknown, transaction: true, .send(here, value: 1, offset: 0), .send(there, value: 2, offset: 0)),
            operation(1, .send(there, value: 3, offset: 2)),
            operation(2, poll((here, 0, 1))),
        ]
        expect([.lostWrite], history(torn + [operation(3, poll((there, 2, 3)))]))
        expect([], history(torn + [operation(3, poll((there, 0, 2), (there, 2, 3)))]))
        // Nothing of it is visible: it was aborted.
        expect([], history([torn[0], torn[1], operation(3, poll((there, 2, 3)))]))
    }

    @Test func `what was never read counts at the end alone`() {
        let operations = [
            operation(1, .send(here, value: 1, offset: 0)), operation(1, .send(here, value: 2, offset: 1)),
            operation(2, poll((here, 0, 1))),
        ]
        expect([], history(operations))
        expect([.unseen], history(operations, isComplete: true))
        expect(
            [.unseen], history([operation(1, transaction: true, .send(here, value: 5, offset: nil))], isComplete: true))
    }

    @Test func `a value of an aborted transaction is read`() {
        expect(
            [.abortedRead],
            history([
                operation(1, .failed, transaction: true, .send(here, value: 1, offset: 0)),
                operation(2, poll((here, 0, 1))),
            ]))
        expect(
            [],
            history([
                operation(1, .unknown, transaction: true, .send(here, value: 1, offset: 0)),
                operation(2, poll((here, 0, 1))),
            ]))
    }

    @Test func `a transaction reads what it has just sent`() {
        expect(
            [.precommittedRead],
            history([operation(1, transaction: true, .send(here, value: 1, offset: 0), poll((here, 0, 1)))]))
    }

    @Test func `a consumer jumps over records`() {
        let full = operation(9, poll((here, 0, 1), (here, 1, 2), (here, 3, 3)))
        let first = operation(1, .assign(here, from: 0), poll((here, 0, 1)))
        expect([.pollSkip], history([full, first, operation(1, poll((here, 3, 3)))]))
        expect([.innerPollSkip], history([full, operation(1, poll((here, 0, 1), (here, 3, 3)))]))
        expect([.innerPollSkip], history([full, operation(1, .assign(here, from: 1), poll((here, 3, 3)))]))
        // Offset 2 holds a marker, and a rebalance starts over.
        expect([], history([full, first, operation(1, poll((here, 1, 2), (here, 3, 3)))]))
        expect([], history([full, first, operation(1, .rebalanced), operation(1, poll((here, 3, 3)))]))
        expect([], history([full, first, operation(1, .subscribe(["t"]), poll((here, 3, 3)))]))
    }

    @Test func `a consumer goes back or reads again`() {
        let first = operation(1, poll((here, 0, 1), (here, 1, 2)))
        expect([.nonmonotonicPoll], history([first, operation(1, poll((here, 1, 2)))]))
        expect([.nonmonotonicPoll], history([first, operation(1, poll((here, 0, 1), (here, 1, 2)))]))
        expect([.innerNonmonotonicPoll], history([operation(1, poll((here, 1, 2), (here, 0, 1)))]))
        expect([], history([first, operation(2, poll((here, 1, 2)))]))
        expect([], history([first, operation(1, .assign(here, from: 0), poll((here, 0, 1)))]))
    }

    @Test func `a later send gets a lower offset`() {
        expect(
            [.nonmonotonicSend],
            history([operation(1, .send(here, value: 1, offset: 5)), operation(1, .send(here, value: 2, offset: 4))]))
        expect(
            [.innerNonmonotonicSend],
            history([operation(1, .send(here, value: 1, offset: 5), .send(here, value: 2, offset: 4))]))
        // Others' sends between them, and other partitions, are nobody's business.
        expect(
            [],
            history([
                operation(1, .send(here, value: 1, offset: 5)), operation(2, .send(here, value: 2, offset: 4)),
                operation(1, .send(there, value: 3, offset: 0)), operation(1, .send(here, value: 4, offset: 9)),
            ]))
    }

    @Test func `transactions read from each other`() {
        let first = operation(
            1, transaction: true, at: 0...100, .send(here, value: 1, offset: 0), poll((there, 0, 2)))
        let second = operation(
            2, transaction: true, at: 0...100, .send(there, value: 2, offset: 0), poll((here, 0, 1)))
        expect([.readCycle], history([first, second]))
        let reader = operation(3, transaction: true, poll((here, 0, 1), (there, 0, 2)))
        expect([], history([operation(1, transaction: true, .send(here, value: 1, offset: 0)), second, reader]))
    }

    @Test func `write order may run in circles`() {
        // Each wrote before the other on one partition: legal in Kafka.
        expect(
            [],
            history([
                operation(1, transaction: true, .send(here, value: 1, offset: 0), .send(there, value: 2, offset: 1)),
                operation(2, transaction: true, .send(there, value: 3, offset: 0), .send(here, value: 4, offset: 1)),
                operation(3, poll((here, 0, 1), (here, 1, 4), (there, 0, 3), (there, 1, 2))),
            ]))
    }

    private func hold(_ member: String, _ epoch: Int, _ places: Place...) -> Step {
        .hold(group: "g", member: member, epoch: epoch, places: places)
    }

    @Test func `two members hold a partition`() {
        expect(
            [.twoOwners],
            history([
                operation(1, at: 0...5, hold("a", 1, here)),
                operation(2, at: 10...15, hold("b", 2, here)),
                operation(1, at: 20...25, hold("a", 1, here)),
            ]))
        // A gave it up, or was never accepted again: a zombie is no owner.
        expect(
            [],
            history([
                operation(1, at: 0...5, hold("a", 1, here)),
                operation(1, at: 6...7, hold("a", 2, there)),
                operation(2, at: 10...15, hold("b", 2, here)),
                operation(1, at: 20...25, hold("a", 2, there)),
            ]))
        expect(
            [],
            history([
                operation(1, at: 0...5, hold("a", 1, here)), operation(2, at: 10...15, hold("b", 2, here)),
            ]))
        // Accepted before the other got it, though the answer came later.
        expect(
            [],
            history([
                operation(1, at: 0...5, hold("a", 1, here)),
                operation(2, at: 10...15, hold("b", 2, here)),
                operation(1, at: 8...25, hold("a", 1, here)),
            ]))
    }

    @Test func `a committed offset falls`() {
        let commits = [
            operation(1, .commit(GroupOffset("g", here, 5))), operation(1, .commit(GroupOffset("g", here, 9))),
        ]
        expect([.offsetRegression], history(commits + [operation(2, .committed(GroupOffset("g", here, 5)))]))
        expect([.offsetRegression], history(commits + [operation(2, .committed(GroupOffset("g", here, -1)))]))
        expect([], history(commits + [operation(2, .committed(GroupOffset("g", here, 9)))]))
        expect(
            [],
            history([
                commits[0], operation(1, .unknown, .commit(GroupOffset("g", here, 9))),
                operation(2, .committed(GroupOffset("g", here, 5))),
            ]))
        // The lower one was given up by its client and arrived after the higher.
        expect(
            [],
            history([
                operation(1, .unknown, .commit(GroupOffset("g", here, 5))), commits[1],
                operation(2, .committed(GroupOffset("g", here, 5))),
            ]))
        // And its member goes on from there.
        let late = [
            operation(1, .unknown, .commit(GroupOffset("g", here, 5))), commits[1],
            operation(1, .committed(GroupOffset("g", here, 5))), operation(1, .commit(GroupOffset("g", here, 6))),
        ]
        expect([], history(late + [operation(2, .committed(GroupOffset("g", here, 6)))]))
        expect(
            [.offsetRegression],
            history(
                late + [
                    operation(1, .commit(GroupOffset("g", here, 7))), operation(2, .committed(GroupOffset("g", here, 6))),
                ]))
        // Asked for before the commit was acknowledged.
        expect(
            [],
            history([
                operation(1, at: 0...1, .commit(GroupOffset("g", here, 5))),
                operation(1, at: 10...20, .commit(GroupOffset("g", here, 9))),
                operation(2, at: 15...25, .committed(GroupOffset("g", here, 5))),
            ]))
    }

    @Test func `an offset of an aborted transaction is committed`() {
        expect(
            [.abortedOffset],
            history([
                operation(1, .failed, transaction: true, .commit(GroupOffset("g", here, 5))),
                operation(2, .committed(GroupOffset("g", here, 5))),
            ]))
        expect(
            [],
            history([
                operation(1, .unknown, transaction: true, .commit(GroupOffset("g", here, 5))),
                operation(2, .committed(GroupOffset("g", here, 5))),
            ]))
    }

    @Test func `records of a transaction are visible and its offsets are not`() {
        let torn = [
            operation(
                1, .unknown, transaction: true, .send(there, value: 1, offset: 0), .commit(GroupOffset("g", here, 5))),
            operation(2, poll((there, 0, 1))),
        ]
        expect([.tornTransaction], history(torn + [operation(3, .committed(GroupOffset("g", here, -1)))]))
        expect([], history(torn + [operation(3, .committed(GroupOffset("g", here, 5)))]))
        expect([], history([torn[0], operation(3, .committed(GroupOffset("g", here, -1))), torn[1]]))
    }

    // MARK: Share groups

    private func acquired(_ first: Int64, _ last: Int64, count: Int = 1, lock: Int64 = 1) -> Step {
        .acquired(group: "s", here, first: first, last: last, count: count, lockMilliseconds: lock)
    }

    private func settled(_ first: Int64, _ last: Int64, _ kind: Settlement) -> Step {
        .settled(group: "s", here, first: first, last: last, kind)
    }

    @Test func `a share group delivers what was accepted`() {
        let accepted = [operation(1, acquired(0, 4)), operation(1, settled(0, 2, .accept))]
        expect([.deliveredAgain], history(accepted + [operation(2, acquired(2, 2, count: 2))]))
        expect([], history(accepted + [operation(1, settled(3, 4, .release)), operation(2, acquired(3, 4, count: 2))]))
        // Asked for before the acceptance was answered.
        expect([], history(accepted + [operation(2, at: 12...30, acquired(2, 2, count: 2))]))
        // Nobody knows whether it was accepted.
        expect(
            [],
            history([
                operation(1, acquired(0, 4)), operation(1, .unknown, settled(0, 2, .accept)),
                operation(2, acquired(2, 2, count: 2)),
            ]))
    }

    @Test func `two members of a share group hold a record`() {
        let held = operation(1, at: 0...10, acquired(0, 4))
        expect([.twoHolders], history([held, operation(2, at: 500...600, acquired(4, 5, count: 2))]))
        // Its lock is over.
        expect([], history([held, operation(2, at: 999_990...1_000_001, acquired(4, 5, count: 2))]))
        // Its session is over.
        expect(
            [],
            history([
                held, operation(1, at: 300...400, .sessionEnded(group: "s")),
                operation(2, at: 500...600, acquired(4, 5, count: 2)),
            ]))
        // It gave it back.
        expect(
            [],
            history([
                held, operation(1, .unknown, transaction: false, at: 300...400, [settled(0, 4, .release)]),
                operation(2, at: 350...600, acquired(4, 5, count: 2)),
            ]))
    }

    @Test func `a share group delivers too often`() {
        expect([.deliveredTooOften], history([operation(1, acquired(0, 0, count: 6))]))
        expect([], history([operation(1, acquired(0, 0, count: 5))]))
    }

    @Test func `a share group passes a record over`() {
        let read = operation(9, poll((here, 0, 1), (here, 1, 2)))
        let first = [operation(1, acquired(0, 0)), operation(1, settled(0, 0, .accept)), read]
        expect([.notDelivered], history(first, isComplete: true))
        expect([], history(first))
        let second = [operation(1, acquired(1, 1, count: 2)), operation(1, settled(1, 1, .reject))]
        expect([], history(first + second, isComplete: true))
        // Released, and not delivered again although the limit is not reached.
        let released = [operation(1, acquired(1, 1, count: 2)), operation(1, settled(1, 1, .release))]
        expect([.notDelivered], history(first + released, isComplete: true))
        expect(
            [], history(first + released + [operation(2, acquired(1, 1, count: 5))], isComplete: true))
    }

    @Test func `a share group is never given a partition`() {
        let there = Place("t", 1)
        let read = operation(9, poll((here, 0, 1), (there, 0, 2)))
        let joined = operation(1, acquired(0, -1))
        expect([], history([read], isComplete: true))
        expect([.notDelivered], history([joined, read], isComplete: true))
        let one = [joined, operation(1, acquired(0, 0)), operation(1, settled(0, 0, .accept)), read]
        expect([.notDelivered], history(one, isComplete: true))
        let other = Step.settled(group: "s", there, first: 0, last: 0, .accept)
        expect([], history(one + [operation(1, other)], isComplete: true))
        // Refused for certain: the lock was over.
        expect([.notDelivered], history(one + [operation(1, .failed, other)], isComplete: true))
        // Answers that were lost may have given it out, up to the limit; those of another partition cannot, nor those of
        // before it was sent.
        func lost(_ place: Place, at times: ClosedRange<Int64>) -> [MartletChecker.Operation] {
            let step = Step.acquired(group: "s", place, first: 0, last: -1, count: 0, lockMilliseconds: 1)
            return (0..<5).map { _ in operation(1, .unknown, transaction: false, at: times, [step]) }
        }
        let sent = operation(3, at: 700...900, .send(there, value: 2, offset: 0))
        expect([], history(one + [sent] + lost(there, at: 800...900), isComplete: true))
        expect([.notDelivered], history(one + [sent] + lost(here, at: 800...900), isComplete: true))
        expect([.notDelivered], history(one + [sent] + lost(there, at: 500...600), isComplete: true))
        // Another topic.
        expect([], history([joined, operation(9, poll((Place("u", 0), 0, 1)))], isComplete: true))
    }

    @Test func `what was deleted need not be read`() {
        let sent = operation(1, .send(here, value: 1, offset: 0))
        expect([.unseen], history([sent], isComplete: true))
        expect([], history([sent, operation(2, .deleted(topic: "t"))], isComplete: true))
    }

    @Test func `every anomaly has a history above`() {
        // Adding one without its test is noticed here.
        #expect(Anomaly.allCases.count == 21)
    }
}

@Suite struct HistoryFileTests {
    @Test func `a history comes back from its lines`() throws {
        let place = Place("a-b", 3)
        let history = History(
            operations: [
                MartletChecker.Operation(
                    process: 1, start: 5, end: 9, outcome: .unknown, isTransaction: true,
                    steps: [
                        .subscribe(["a-b"]), .assign(place, from: 4), .rebalanced, .send(place, value: 7, offset: nil),
                        .send(place, value: 8, offset: 2), .poll([SeenRecord(place, 1, 2), SeenRecord(place, 3, 4)]),
                        .commit(GroupOffset("g\"1", place, 6)), .committed(GroupOffset("g", place, -1)),
                        .hold(group: "g", member: "m", epoch: 3, places: [place]),
                        .acquired(group: "g", place, first: 1, last: 4, count: 2, lockMilliseconds: 30_000),
                        .settled(group: "g", place, first: 1, last: 3, .release), .sessionEnded(group: "g"),
                        .deleted(topic: "a-b"),
                    ]),
                MartletChecker.Operation(process: 2, start: 10, end: 11, outcome: .failed, steps: []),
            ], isComplete: true)
        let text = HistoryFile.encode(history)
        #expect(text.split(separator: "\n").count == 3)
        #expect(try HistoryFile.decode(text) == history)
    }

    @Test func `a line that is none is named`() {
        let bad = [
            "{", "[]", "{\"process\":1}", "{\"process\":1,\"start\":1,\"end\":2,\"outcome\":\"ok\",\"steps\":[{\"x\":1}]}",
            "{\"process\":1,\"start\":1,\"end\":2,\"outcome\":\"ok\",\"steps\":[[\"send\",\"t\",1,2]]}",
            "{\"process\":1,\"start\":1,\"end\":2,\"outcome\":\"ok\",\"steps\":[[\"settled\",\"g\",\"t-0\",1,2,\"eat\"]]}",
        ]
        for line in bad {
            #expect(throws: HistoryFileError.self) { try HistoryFile.decode("\n" + line) }
        }
    }
}
