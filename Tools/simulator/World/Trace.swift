/// One line per thing that happened, in order. Off by default, and then it costs nothing; two runs of a seed give
/// the same bytes.
package final class Trace {
    package private(set) var isOn: Bool
    private let scheduler: Scheduler
    /// Called with each line.
    package var output: (String) -> Void = { _ in }
    /// FNV-1a of all lines.
    package private(set) var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    package private(set) var lineCount = 0

    package init(scheduler: Scheduler, isOn: Bool) {
        self.scheduler = scheduler
        self.isOn = isOn
    }

    /// - Parameters:
    ///   - kind: one word; the legend is in the simulator's README.
    package func note(_ kind: String, _ text: @autoclosure () -> String) {
        guard isOn else { return }
        let microseconds = (scheduler.now - 1_000_000_000_000) / 1_000
        let line = "\(microseconds) \(kind) \(text())"
        for byte in line.utf8 { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
        lineCount += 1
        output(line)
    }
}
