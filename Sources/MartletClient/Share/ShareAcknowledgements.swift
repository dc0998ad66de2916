import MartletLogModel

/// What can be said about an offset that was acquired, as it stands in requests.
enum ShareWord: Int8, Sendable {
    /// There is no record at this offset, by compaction or because it is a marker.
    case gap = 0
    case accept = 1
    case release = 2
    case reject = 3
    /// It needs more time (KIP-1222).
    case renew = 4
}

/// Consecutive offsets about which the same is said; both ends inclusive.
struct ShareRun: Sendable, Hashable {
    var first: Int64
    var last: Int64
    var word: ShareWord
}

/// What is to be told to one broker about records it has given out. A pure value; it holds no more runs than the broker
/// has given records.
struct ShareAcknowledgements: Sendable {
    private var runs: [SharePlace: [ShareRun]] = [:]

    var isEmpty: Bool { runs.isEmpty }
    var places: Set<SharePlace> { Set(runs.keys) }

    /// The offsets of a run must not have been added since the latest `take`.
    mutating func add(_ run: ShareRun, of place: SharePlace) {
        var known = runs[place] ?? []
        runs[place] = nil
        if let last = known.last, last.word == run.word, last.last + 1 == run.first {
            known[known.count - 1].last = run.last
        } else {
            known.append(run)
        }
        runs[place] = known
    }

    /// Takes out everything, in order and as few runs as possible.
    mutating func take() -> [SharePlace: [ShareRun]] {
        let result = runs.mapValues(Self.merged)
        runs = [:]
        return result
    }

    private static func merged(_ runs: [ShareRun]) -> [ShareRun] {
        var result: [ShareRun] = []
        for run in runs.sorted(by: { $0.first < $1.first }) {
            if let last = result.last, last.word == run.word, last.last + 1 == run.first {
                result[result.count - 1].last = run.last
            } else {
                result.append(run)
            }
        }
        return result
    }
}

/// Goes through the offsets that a broker says it has given to this member, beside the records in its answer: each is
/// either handed out or something is said about it. A pure value; a range of any size costs the same.
struct AcquiredOffsets {
    private var ranges: ArraySlice<(first: Int64, last: Int64, deliveryCount: Int16)>
    /// What is to be said about offsets that were not handed out.
    private(set) var runs: [ShareRun] = []

    /// - Parameter ranges: both ends inclusive. What is no range, or is not behind the one before, is left out.
    init(_ ranges: [(first: Int64, last: Int64, deliveryCount: Int16)]) {
        var end: Int64 = -1
        self.ranges =
            ranges.filter { range in
                guard range.first > end, range.first <= range.last, range.last < .max else { return false }
                end = range.last
                return true
            }[...]
    }

    /// The record at `offset` is here; how often it was given out, or `nil` if it is not given to us. Offsets must rise;
    /// those passed over have no record.
    mutating func take(_ offset: Int64) -> Int16? {
        pass(before: offset, .gap)
        guard let range = ranges.first, range.first == offset else { return nil }
        shrink(to: offset + 1)
        return range.deliveryCount
    }

    /// Nothing before `end` is handed out any more.
    mutating func pass(before end: Int64, _ word: ShareWord) {
        while let range = ranges.first, range.first < end {
            runs.append(ShareRun(first: range.first, last: min(range.last, end - 1), word: word))
            shrink(to: end)
        }
    }

    /// Nothing is handed out any more.
    mutating func finish(_ word: ShareWord) { pass(before: .max, word) }

    private mutating func shrink(to first: Int64) {
        guard let range = ranges.first else { return }
        if range.last < first {
            ranges.removeFirst()
        } else {
            ranges[ranges.startIndex].first = first
        }
    }
}
