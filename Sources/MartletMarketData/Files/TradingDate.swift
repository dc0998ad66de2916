/// A calendar day of a trading session. Feeds carry only the time since the midnight of their exchange,
/// so the day comes from the file's name or from the caller.
public struct TradingDate: Hashable, Comparable, Sendable, CustomStringConvertible {
    public let year: Int
    public let month: Int
    public let day: Int

    /// `nil` if there is no such day in the Gregorian calendar (years 1900 to 2199).
    public init?(year: Int, month: Int, day: Int) {
        guard (1900...2199).contains(year), (1...12).contains(month), day >= 1,
            day <= Self.dayCount(year: year, month: month)
        else { return nil }
        self.year = year
        self.month = month
        self.day = day
    }

    /// Parses `YYYY-MM-DD` or `YYYYMMDD`.
    public init?(_ text: String) {
        let digits = text.utf8.filter { $0 != UInt8(ascii: "-") }
        guard digits.count == 8, let date = Self.firstDate(in: Array(digits)) else { return nil }
        self = date
    }

    /// The day named in a file's name: `YYYY-MM-DD`, `YYYYMMDD`, or Nasdaq's `MMDDYYYY`.
    public init?(inFileName path: String) {
        let name = path.split(separator: "/").last.map(String.init) ?? path
        var runs: [[UInt8]] = [[]]
        for byte in name.utf8 {
            if (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) {
                runs[runs.count - 1].append(byte)
            } else if byte != UInt8(ascii: "-") {
                runs.append([])
            }
        }
        for run in runs where run.count == 8 {
            if let date = Self.firstDate(in: run) {
                self = date
                return
            }
        }
        return nil
    }

    private static func firstDate(in digits: [UInt8]) -> TradingDate? {
        func number(_ range: Range<Int>) -> Int { digits[range].reduce(0) { $0 * 10 + Int($1) - 48 } }
        guard digits.allSatisfy({ (48...57).contains($0) }) else { return nil }
        return TradingDate(year: number(0..<4), month: number(4..<6), day: number(6..<8))
            ?? TradingDate(year: number(4..<8), month: number(0..<2), day: number(2..<4))
    }

    /// Days from 1970-01-01 to this day.
    public var daysSinceEpoch: Int {
        // Civil calendar with years that begin in March, so that the leap day is the last of a year.
        let shiftedYear = month <= 2 ? year - 1 : year
        let era = shiftedYear / 400
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        return era * 146_097 + dayOfEra - 719_468
    }

    /// Midnight of New York at the start of this day, in milliseconds since the Unix epoch. Rule in force
    /// since 2007: daylight time from the second Sunday of March to the first Sunday of November; the
    /// change happens at 02:00, so the midnight of the first day is still standard time.
    public var newYorkMidnightMilliseconds: Int64 {
        let start = Self.sunday(2, month: 3, year: year)
        let end = Self.sunday(1, month: 11, year: year)
        let isDaylight = (month, day) > (3, start) && (month, day) <= (11, end)
        return Int64(daysSinceEpoch) * 86_400_000 + (isDaylight ? 4 : 5) * 3_600_000
    }

    private static func sunday(_ count: Int, month: Int, year: Int) -> Int {
        guard let first = TradingDate(year: year, month: month, day: 1) else { return 1 }
        // 1970-01-01 was a Thursday: weekday 4 when Sunday is 0.
        let weekday = (first.daysSinceEpoch % 7 + 7 + 4) % 7
        return 1 + (7 - weekday) % 7 + (count - 1) * 7
    }

    private static func dayCount(year: Int, month: Int) -> Int {
        switch month {
        case 4, 6, 9, 11: 30
        case 2: year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28
        case _: 31
        }
    }

    public static func < (left: TradingDate, right: TradingDate) -> Bool {
        (left.year, left.month, left.day) < (right.year, right.month, right.day)
    }

    public var description: String {
        func padded(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }
        return "\(year)-\(padded(month))-\(padded(day))"
    }
}
