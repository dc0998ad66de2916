/// What clients did and saw, in the order in which the operations ended. The input of ``Checker``; made by the
/// simulator, or read from a file that a run against a real broker left behind (``HistoryFile``).
package struct History: Equatable, Sendable {
    package var operations: [Operation]
    /// A last phase without faults read every partition to its end: whatever was acknowledged must have been seen.
    package var isComplete: Bool

    package init(operations: [Operation] = [], isComplete: Bool = false) {
        self.operations = operations
        self.isComplete = isComplete
    }
}

/// How an operation ended, as far as its client knows.
package enum Outcome: String, Equatable, Sendable {
    /// Acknowledged; a transaction was committed.
    case succeeded = "ok"
    /// Certainly without effect; a transaction was aborted.
    case failed = "fail"
    /// Nobody knows.
    case unknown = "info"
}

/// One operation of one process. A process does one thing at a time; a client that is created anew is the same
/// process if it goes on where the former stood, which only its caller knows.
package struct Operation: Equatable, Sendable {
    package var process: Int
    /// Nanoseconds on one clock for all processes: when it was asked for, and when its answer was there.
    package var start: Int64
    package var end: Int64
    package var outcome: Outcome
    /// Sends and commits of offsets take effect together or not at all.
    package var isTransaction: Bool
    package var steps: [Step]

    package init(
        process: Int, start: Int64, end: Int64, outcome: Outcome, isTransaction: Bool = false, steps: [Step]
    ) {
        self.process = process
        self.start = start
        self.end = end
        self.outcome = outcome
        self.isTransaction = isTransaction
        self.steps = steps
    }
}

/// A topic's partition as the history names it.
package struct Place: Hashable, Comparable, Sendable, CustomStringConvertible {
    package var topic: String
    package var partition: Int

    package init(_ topic: String, _ partition: Int) {
        self.topic = topic
        self.partition = partition
    }

    /// `topic-partition`; `nil` for other text.
    package init?(_ text: String) {
        guard let dash = text.lastIndex(of: "-"), let number = Int(text[text.index(after: dash)...]) else { return nil }
        self.init(String(text[..<dash]), number)
    }

    package var description: String { "\(topic)-\(partition)" }

    package static func < (left: Self, right: Self) -> Bool {
        (left.topic, left.partition) < (right.topic, right.partition)
    }
}

package struct SeenRecord: Equatable, Sendable {
    package var place: Place
    package var offset: Int64
    package var value: Int64

    package init(_ place: Place, _ offset: Int64, _ value: Int64) {
        self.place = place
        self.offset = offset
        self.value = value
    }
}

/// Offsets are those of the next record to be read, as Kafka counts them.
package struct GroupOffset: Equatable, Sendable {
    package var group: String
    package var place: Place
    package var offset: Int64

    package init(_ group: String, _ place: Place, _ offset: Int64) {
        self.group = group
        self.place = place
        self.offset = offset
    }
}

package enum Step: Equatable, Sendable {
    /// The process reads these topics as member of a group; positions start over.
    case subscribe([String])
    /// The process reads this partition from this offset on.
    case assign(Place, from: Int64)
    /// The group gave or took partitions; positions start over.
    case rebalanced
    /// A value of its own was sent; no other send of the topic has it. The offset is the broker's answer, if there
    /// was one.
    case send(Place, value: Int64, offset: Int64?)
    /// Records as a read_committed consumer got them, in their order.
    case poll([SeenRecord])
    /// Offsets were committed.
    case commit(GroupOffset)
    /// Offsets were fetched, those of open transactions excluded (RequireStable).
    case committed(GroupOffset)
    /// The broker accepted something of a group's member that holds these partitions. A member that was given up
    /// and has come back is another one.
    case hold(group: String, member: String, epoch: Int, places: [Place])
    /// A member of a share group (KIP-932) got these records, the last included, for so many milliseconds; the
    /// count says how often they were delivered with this time. Of an operation of unknown outcome: an answer that
    /// may have held records was lost. Without any record (the last before the first): it began to read the topic.
    case acquired(group: String, Place, first: Int64, last: Int64, count: Int, lockMilliseconds: Int64)
    /// It said what became of them.
    case settled(group: String, Place, first: Int64, last: Int64, Settlement)
    /// Its session is over, at the latest when the operation ended and at the earliest when it began: it holds
    /// nothing any more.
    case sessionEnded(group: String)
    /// The topic was deleted: what nobody has read of it is gone for good.
    case deleted(topic: String)
}

/// What a member of a share group says of records.
package enum Settlement: String, Equatable, Sendable {
    case accept, release, reject
}
