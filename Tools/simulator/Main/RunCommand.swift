import ArgumentParser
import Glibc
import MartletChecker
import MartletLogModel
import MartletSimulation

struct RunCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Runs seeds; prints those that fail.")

    @Option(help: "Seeds: A..<B, or one.")
    var seeds = SeedRange(0..<100)

    @Option(help: "Virtual minutes before everything heals.")
    var minutes: Int64 = 10

    @Flag(help: "One JSON object per seed and one at the end.")
    var json = false

    @Option(help: "Name of a rule to suspend, as `mutations` lists them.")
    var suspend: String?

    @Flag(help: "At the end bits flip in what is stored, and everything is read again.")
    var rot = false

    @Option(help: "Stop after this many failed seeds.")
    var failures = 20

    func run() async throws {
        let rules = try Self.rule(suspend)
        var summary = Summary()
        let started = ContinuousClock.now
        var shown = started
        for seed in seeds.seeds {
            var options = SimulationOptions(seed: seed)
            options.minutes = minutes
            options.rules = rules
            options.rots = rot
            let result = await Simulation.run(options)
            summary.add(result, minutes: minutes)
            report(result)
            fflush(nil)
            if !json, ContinuousClock.now - shown > .seconds(10) {
                shown = .now
                print("\(summary.seedCount) of \(seeds.seeds.count) seeds, \(summary.failed.count) failed")
            }
            if summary.failed.count >= failures { break }
        }
        summary.print(json: json, duration: ContinuousClock.now - started)
        if !summary.failed.isEmpty || !summary.thin.isEmpty { throw ExitCode(1) }
    }

    static func rule(_ name: String?) throws -> SuspendedRules {
        guard let name else { return [] }
        guard let found = SuspendedRules.named.first(where: { $0.name == name }) else {
            throw ValidationError(
                "no rule '\(name)'; known are: \(SuspendedRules.named.map(\.name).joined(separator: ", "))")
        }
        return found.rule
    }

    private func report(_ result: SimulationResult) {
        if json {
            let faults = result.faults.sorted { $0.key < $1.key }.map { "\"\($0.key)\":\($0.value)" }
            print(
                "{\"seed\":\(result.seed),\"failed\":\(result.failed),\"virtualSeconds\":\(result.virtualSeconds)"
                    + ",\"acknowledged\":\(result.counts.acknowledgedOperations),\"faults\":{\(faults.joined(separator: ","))}"
                    + ",\"events\":\(result.events),\"problems\":[\(result.problems.map(quoted).joined(separator: ","))]}")
        } else if result.failed {
            print("seed \(result.seed) FAILED, \(result.problems.count) problems; simulator trace \(result.seed)")
            for problem in result.problems.prefix(5) { print("  \(problem)") }
        }
    }

    private func quoted(_ text: String) -> String {
        "\"" + text.map { $0 == "\"" || $0 == "\\" ? "\\\($0)" : String($0) }.joined() + "\""
    }
}

/// Figures of many seeds.
struct Summary {
    /// What a seed must amount to.
    static let acknowledgedMinimum = 1_000
    static let faultMinimum = 5

    var seedCount = 0
    var failed: [UInt64] = []
    /// Seeds that did too little to prove anything.
    var thin: [UInt64] = []
    private var acknowledged: [Int] = []
    private var faults: [Int] = []
    private var transactions = (committed: 0, aborted: 0, unknown: 0)
    private var virtualSeconds: Int64 = 0

    mutating func add(_ result: SimulationResult, minutes: Int64) {
        seedCount += 1
        if result.failed { failed.append(result.seed) }
        if minutes >= 10,
            result.counts.acknowledgedOperations < Self.acknowledgedMinimum || result.faultCount < Self.faultMinimum
        {
            thin.append(result.seed)
        }
        acknowledged.append(result.counts.acknowledgedOperations)
        faults.append(result.faultCount)
        transactions.committed += result.counts.committedTransactions
        transactions.aborted += result.counts.abortedTransactions
        transactions.unknown += result.counts.unknownTransactions
        virtualSeconds += result.virtualSeconds
    }

    func print(json: Bool, duration: Duration) {
        let seconds = Double(duration.components.seconds) + Double(duration.components.attoseconds) / 1e18
        let minimum = (acknowledged.min() ?? 0, faults.min() ?? 0)
        let sum = (acknowledged.reduce(0, +), faults.reduce(0, +))
        if json {
            Swift.print(
                "{\"seeds\":\(seedCount),\"failed\":\(failed),\"thin\":\(thin),\"seconds\":\(seconds)"
                    + ",\"virtualSeconds\":\(virtualSeconds),\"acknowledged\":\(sum.0),\"acknowledgedMinimum\":\(minimum.0)"
                    + ",\"faults\":\(sum.1),\"faultsMinimum\":\(minimum.1)}")
            return
        }
        Swift.print(
            """
            \(seedCount) seeds, \(failed.count) failed\(failed.isEmpty ? "" : ": \(failed)"), \
            \(virtualSeconds / 3600) virtual hours in \(Int(seconds)) s (\(Int(seconds * 1000) / max(1, seedCount)) ms a seed)
            acknowledged operations: \(sum.0), at least \(minimum.0) a seed; faults: \(sum.1), at least \(minimum.1) a seed
            transactions: \(transactions.committed) committed, \(transactions.aborted) aborted, \
            \(transactions.unknown) of unknown end
            """)
        if !thin.isEmpty {
            Swift.print(
                "too thin (below \(Self.acknowledgedMinimum) operations or \(Self.faultMinimum) faults): \(thin)")
        }
    }
}
