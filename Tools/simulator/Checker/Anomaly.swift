/// What a history may show that no history of Kafka may. The first group are those of the Kafka workload of
/// Jepsen (`jepsen.tests.kafka`); the second are our invariants of groups and transactions.
package enum Anomaly: String, CaseIterable, Comparable, Sendable {
    /// Two values at one offset.
    case inconsistentOffsets = "inconsistent-offsets"
    /// One value at two offsets.
    case duplicate
    /// An acknowledged value lies below what was read, and nobody read it; or a part of a visible transaction does.
    case lostWrite = "lost-write"
    /// An acknowledged value was not seen by the end of a complete history.
    case unseen
    /// A value of an operation that failed was read.
    case abortedRead = "G1a"
    /// A transaction read what it had sent itself.
    case precommittedRead = "precommitted-read"
    /// A consumer jumped over visible records.
    case pollSkip = "poll-skip"
    /// A consumer went back or read twice.
    case nonmonotonicPoll = "nonmonotonic-poll"
    /// The same within one operation.
    case innerPollSkip = "int-poll-skip"
    case innerNonmonotonicPoll = "int-nonmonotonic-poll"
    /// A later send of a process got a lower offset.
    case nonmonotonicSend = "nonmonotonic-send"
    case innerNonmonotonicSend = "int-nonmonotonic-send"
    /// Transactions read from each other in a circle.
    case readCycle = "G1c"

    /// Two members of a group held a partition at the same time (I17).
    case twoOwners = "two-owners"
    /// A committed offset was read that is below one acknowledged before (I18).
    case offsetRegression = "offset-regression"
    /// A committed offset was read that nobody committed, or whose transaction was aborted (I15).
    case abortedOffset = "aborted-offset"
    /// Of a transaction the records are visible and the offsets are not (I14).
    case tornTransaction = "torn-transaction"

    /// A record was delivered after its acceptance or rejection by a share group was answered.
    case deliveredAgain = "delivered-again"
    /// Two members of a share group held a record at the same time, or one of them twice.
    case twoHolders = "two-holders"
    /// A share group delivered a record more often than its limit allows.
    case deliveredTooOften = "delivered-too-often"
    /// At the end of a complete history a share group has neither settled a record nor given it up.
    case notDelivered = "not-delivered"

    package static func < (left: Self, right: Self) -> Bool {
        order(left) < order(right)
    }

    private static func order(_ anomaly: Self) -> Int { allCases.firstIndex(of: anomaly) ?? allCases.count }
}

package struct Finding: Equatable, Sendable, CustomStringConvertible {
    package var anomaly: Anomaly
    package var detail: String
    /// Indexes of the operations that show it.
    package var operations: [Int]

    package init(_ anomaly: Anomaly, _ detail: String, operations: [Int]) {
        self.anomaly = anomaly
        self.detail = detail
        self.operations = operations
    }

    package var description: String {
        "\(anomaly.rawValue): \(detail) (operations \(operations.map(String.init).joined(separator: ", ")))"
    }
}

/// What was checked, so that a clean result is not taken from an empty history.
package struct CheckCounts: Equatable, Sendable {
    package var operations = 0
    package var acknowledgedOperations = 0
    package var sends = 0
    package var acknowledgedSends = 0
    package var polledRecords = 0
    package var committedTransactions = 0
    package var abortedTransactions = 0
    package var unknownTransactions = 0
    package var offsetCommits = 0
    package var rebalances = 0

    package init() {}
}

package struct CheckResult: Equatable, Sendable {
    package var findings: [Finding]
    package var counts: CheckCounts

    package var anomalies: Set<Anomaly> { Set(findings.map(\.anomaly)) }
}
