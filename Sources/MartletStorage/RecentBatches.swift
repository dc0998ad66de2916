import MartletLogModel

/// Where the last batches of the active segment lie, so that tail fetches cost no look at the disk.
/// Filled on append; bounded; may be dropped at any time.
struct RecentBatches {
    private struct Entry {
        var baseOffset: Int64
        var lastOffset: Int64
        var position: Int32
        var byteCount: Int32
    }

    /// 24 bytes each.
    static let limit = 256
    private var entries: [Entry] = []
    /// Index of the oldest entry; entries before it are dead and dropped in one go.
    private var head = 0

    mutating func append(baseOffset: Int64, lastOffset: Int64, position: Int, byteCount: Int) {
        if entries.count - head >= Self.limit { head += 1 }
        if head >= Self.limit {
            entries.removeFirst(head)
            head = 0
        }
        entries.append(
            Entry(
                baseOffset: baseOffset, lastOffset: lastOffset, position: Int32(position),
                byteCount: Int32(byteCount)))
    }

    mutating func removeAll() {
        entries = []
        head = 0
    }

    /// Removes what lies at or behind `position`.
    mutating func truncate(to position: Int) {
        while let last = entries.last, Int(last.position) >= position { entries.removeLast() }
        head = min(head, entries.count)
    }

    /// First batch that ends at or after `offset` and the run of whole batches from there; `nil` when the
    /// answer may lie before the oldest remembered batch.
    func locate(
        from offset: Offset, upTo bound: Offset, maxBytes: Int, minOneBatch: Bool
    ) -> (position: Int, byteCount: Int, base: Offset, next: Offset)? {
        guard head < entries.count, offset.rawValue >= entries[head].baseOffset else { return nil }
        var low = head
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].lastOffset < offset.rawValue { low = middle + 1 } else { high = middle }
        }
        guard low < entries.count else { return nil }
        let first = entries[low]
        var next = offset
        var end = Int(first.position)
        var index = low
        while index < entries.count, entries[index].lastOffset < bound.rawValue {
            let following = end + Int(entries[index].byteCount)
            guard following - Int(first.position) <= maxBytes || (index == low && minOneBatch) else { break }
            end = following
            next = Offset(entries[index].lastOffset + 1)
            index += 1
        }
        return (Int(first.position), end - Int(first.position), Offset(first.baseOffset), next)
    }
}
