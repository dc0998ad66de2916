/// Times of the proleptic Gregorian calendar in UTC, without Foundation.
enum CivilTime {
    /// `2026-01-31T09:30:00.123Z`.
    static func text(milliseconds: Int64) -> String {
        let day = milliseconds.flooredDivision(86_400_000)
        let rest = milliseconds - day * 86_400_000
        let (year, month, dayOfMonth) = civil(daysSinceEpoch: day)
        return "\(pad(year, 4))-\(pad(month, 2))-\(pad(dayOfMonth, 2))T"
            + "\(pad(rest / 3_600_000, 2)):\(pad(rest / 60_000 % 60, 2)):\(pad(rest / 1000 % 60, 2)).\(pad(rest % 1000, 3))Z"
    }

    /// Milliseconds since the epoch of `YYYY-MM-DD[THH:MM[:SS[.fff]]][Z|±HH:MM]`; without a zone it is UTC.
    static func parse(_ text: String) -> Int64? {
        var bytes = Array(text.utf8)[...]
        func number(_ digits: Int) -> Int64? {
            guard bytes.count >= digits, bytes.prefix(digits).allSatisfy({ (48...57).contains($0) }) else {
                return nil
            }
            let value = bytes.prefix(digits).reduce(Int64(0)) { $0 * 10 + Int64($1 - 48) }
            bytes = bytes.dropFirst(digits)
            return value
        }
        func take(_ letter: Character) -> Bool {
            guard let first = bytes.first, first == letter.asciiValue else { return false }
            bytes = bytes.dropFirst()
            return true
        }
        guard let year = number(4), take("-"), let month = number(2), take("-"), let day = number(2),
            (1...12).contains(month), day >= 1, day <= dayCount(year, month)
        else { return nil }
        var result = daysSinceEpoch(year, month, day) * 86_400_000
        if take("T") || take(" ") {
            guard let hour = number(2), hour < 24, take(":"), let minute = number(2), minute < 60 else {
                return nil
            }
            result += hour * 3_600_000 + minute * 60_000
            if take(":") {
                guard let second = number(2), second < 60 else { return nil }
                result += second * 1000
                if take(".") {
                    var scale: Int64 = 100
                    guard bytes.first.map({ (48...57).contains($0) }) == true else { return nil }
                    while let digit = number(1) {
                        result += digit * scale
                        scale /= 10
                    }
                }
            }
        }
        if bytes.isEmpty || take("Z") { return bytes.isEmpty ? result : nil }
        let sign: Int64 = take("+") ? 1 : (take("-") ? -1 : 0)
        guard sign != 0, let hours = number(2), take(":"), let minutes = number(2), bytes.isEmpty else {
            return nil
        }
        return result - sign * (hours * 3_600_000 + minutes * 60_000)
    }

    private static func daysSinceEpoch(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
        let shifted = month <= 2 ? year - 1 : year
        let era = shifted.flooredDivision(400)
        let yearOfEra = shifted - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }

    private static func civil(daysSinceEpoch days: Int64) -> (Int64, Int64, Int64) {
        let shifted = days + 719_468
        let era = shifted.flooredDivision(146_097)
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let monthIndex = (5 * dayOfYear + 2) / 153
        let month = monthIndex < 10 ? monthIndex + 3 : monthIndex - 9
        return (
            yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * monthIndex + 2) / 5 + 1
        )
    }

    private static func dayCount(_ year: Int64, _ month: Int64) -> Int64 {
        switch month {
        case 4, 6, 9, 11: 30
        case 2: year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28
        case _: 31
        }
    }

    private static func pad(_ value: Int64, _ width: Int) -> String {
        let text = String(value)
        return String(repeating: "0", count: max(0, width - text.utf8.count)) + text
    }
}

extension Int64 {
    func flooredDivision(_ divisor: Int64) -> Int64 {
        let (quotient, remainder) = quotientAndRemainder(dividingBy: divisor)
        return remainder < 0 ? quotient - 1 : quotient
    }
}
