/// Decimal text of scaled integers; no floating point anywhere near prices.
public enum PriceText {
    /// `value` units of 10^-`places`, all decimals shown: `(2238200, 4)` is `223.8200`.
    public static func decimal(_ value: Int64, places: Int) -> String {
        var digits = String(value.magnitude)
        while digits.utf8.count <= places { digits = "0" + digits }
        let cut = digits.index(digits.endIndex, offsetBy: -places)
        return (value < 0 ? "-" : "") + digits[..<cut] + (places > 0 ? "." + digits[cut...] : "")
    }
}

/// Text of times since midnight.
public enum TimeText {
    /// `09:30:00.123456789`.
    public static func timeOfDay(nanoseconds: Int64) -> String {
        let seconds = nanoseconds / 1_000_000_000
        return [seconds / 3600, seconds / 60 % 60, seconds % 60].map { padded($0, 2) }.joined(separator: ":")
            + "." + padded(nanoseconds % 1_000_000_000, 9)
    }

    static func padded(_ value: Int64, _ width: Int) -> String {
        let digits = String(value)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }
}
