/// Where a share group starts on a partition it has not read yet (`share.auto.offset.reset`).
package enum ShareOffsetReset: Hashable, Sendable {
    case latest
    case earliest
    /// `by_duration:PT…`: the first record not older than this.
    case duration(milliseconds: Int64)

    /// `nil` for a text that is none of them.
    package init?(_ text: String) {
        switch text.lowercased() {
        case "latest": self = .latest
        case "earliest": self = .earliest
        case let text:
            guard text.hasPrefix("by_duration:"),
                let milliseconds = Self.milliseconds(iso8601: text.dropFirst("by_duration:".count))
            else { return nil }
            self = .duration(milliseconds: milliseconds)
        }
    }

    /// A duration such as `P1DT12H30M5S` in milliseconds; days are the largest unit, as Java reads it.
    private static func milliseconds(iso8601 text: Substring) -> Int64? {
        var rest = text
        guard rest.popFirst() == "p", !rest.isEmpty else { return nil }
        var units: [(Character, Int64)] = [("d", 86_400_000)]
        let timeUnits: [(Character, Int64)] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
        var total: Int64 = 0
        var hasAny = false
        while let next = rest.first {
            if next == "t" {
                guard rest.count > 1, units.first?.0 == "d" || units.isEmpty else { return nil }
                rest.removeFirst()
                units = timeUnits
                continue
            }
            let digits = rest.prefix { $0.isASCII && $0.isNumber }
            rest = rest.dropFirst(digits.count)
            guard let number = Int64(digits), let unit = rest.popFirst(),
                let index = units.firstIndex(where: { $0.0 == unit })
            else { return nil }
            let (part, overflow) = number.multipliedReportingOverflow(by: units[index].1)
            let (sum, sumOverflow) = total.addingReportingOverflow(part)
            guard !overflow, !sumOverflow else { return nil }
            total = sum
            hasAny = true
            units.removeSubrange(...index)
        }
        return hasAny ? total : nil
    }
}
