import MartletTestSupport

#if canImport(Glibc)
import Glibc
#endif

/// The lists of `FINDINGS.md`: what holds with each foreign client. The first may only grow.
struct Findings {
    /// Scenarios that hold, by script.
    var holds: [String: [String]] = [:]
    /// Scenarios that are known not to hold, by script.
    var doesNotHold: [String: [String]] = [:]

    /// Reads lines of the form "- `script` scenario" below the headings "Holds" and "Does not hold".
    init() {
        guard let file = fopen(BuildProducts.source("Tests/InteropTests/FINDINGS.md"), "r") else { return }
        defer { fclose(file) }
        var heading = ""
        var buffer = [CChar](repeating: 0, count: 4096)
        while fgets(&buffer, Int32(buffer.count), file) != nil {
            let line = buffer.prefix { $0 != 0 && $0 != 10 }
            let text = String(decoding: line.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if text.hasPrefix("## ") {
                heading = String(text.dropFirst(3))
                continue
            }
            guard text.hasPrefix("- `") else { continue }
            let parts = text.dropFirst(3).split(separator: "` ", maxSplits: 1)
            guard parts.count == 2, let scenario = parts[1].split(separator: " ").first else { continue }
            if heading == "Holds" {
                holds[String(parts[0]), default: []].append(String(scenario))
            } else if heading == "Does not hold" {
                doesNotHold[String(parts[0]), default: []].append(String(scenario))
            }
        }
    }

    static let read = Findings()

    static func scenarios(_ script: String) -> [String] { read.holds[script] ?? [] }
}
