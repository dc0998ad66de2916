/// Well-formedness of UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF), fed in pieces.
struct UTF8Check {
    /// Continuation bytes still to come, and the range of the next one.
    private var pending = 0
    private var low: UInt8 = 0x80
    private var high: UInt8 = 0xBF

    /// Whether the text may end here.
    var isComplete: Bool { pending == 0 }

    /// Takes `bytes[start..<end]`; false when the text is not well formed.
    mutating func feed(_ bytes: UnsafeRawBufferPointer, _ start: Int, _ end: Int) -> Bool {
        for index in start..<end {
            let byte = bytes[index]
            if pending > 0 {
                guard byte >= low, byte <= high else { return false }
                pending -= 1
                low = 0x80
                high = 0xBF
                continue
            }
            switch byte {
            case 0x00...0x7F: break
            case 0xC2...0xDF: pending = 1
            case 0xE0...0xEF:
                pending = 2
                if byte == 0xE0 { low = 0xA0 }
                if byte == 0xED { high = 0x9F }
            case 0xF0...0xF4:
                pending = 3
                if byte == 0xF0 { low = 0x90 }
                if byte == 0xF4 { high = 0x8F }
            default: return false
            }
        }
        return true
    }
}
