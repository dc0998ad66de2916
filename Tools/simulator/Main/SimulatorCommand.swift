import ArgumentParser
import MartletChecker
import MartletSimulation

@main
struct SimulatorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulator",
        abstract: "Runs a broker with its disk, network and clients out of one seed, and checks what they saw.",
        subcommands: [RunCommand.self, TraceCommand.self, MutationsCommand.self, CheckCommand.self],
        defaultSubcommand: RunCommand.self)
}

/// `A..<B` or one number.
struct SeedRange: ExpressibleByArgument {
    var seeds: Range<UInt64>

    init(_ seeds: Range<UInt64>) { self.seeds = seeds }

    init?(argument: String) {
        if let seed = UInt64(argument) {
            seeds = seed..<seed + 1
            return
        }
        guard let dots = argument.firstRange(of: "..<"), let first = UInt64(argument[..<dots.lowerBound]),
            let end = UInt64(argument[dots.upperBound...]), first < end
        else { return nil }
        seeds = first..<end
    }
}

struct TraceCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace", abstract: "Runs one seed and prints everything that happens.")

    @Argument(help: "The seed.")
    var seed: UInt64

    @Option(help: "Virtual minutes before everything heals.")
    var minutes: Int64 = 10

    @Option(help: "Name of a rule to suspend.")
    var suspend: String?

    @Flag(help: "At the end bits flip in what is stored, and everything is read again.")
    var rot = false

    @Flag(help: "Print the history as JSON lines instead, as `check` reads it.")
    var history = false

    func run() async throws {
        var options = SimulationOptions(seed: seed)
        options.minutes = minutes
        options.traces = !history
        options.rules = try RunCommand.rule(suspend)
        options.rots = rot
        let result = await Simulation.run(options) { print($0) }
        if history { return print(HistoryFile.encode(result.history), terminator: "") }
        for problem in result.problems { print("PROBLEM \(problem)") }
        print("seed \(seed), \(result.traceLineCount) lines, hash \(String(result.traceHash, radix: 16))")
    }
}

struct CheckCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Checks a recorded history, read from standard input.")

    func run() async throws {
        var text = ""
        while let line = readLine(strippingNewline: false) { text += line }
        let result = Checker.check(try HistoryFile.decode(text))
        for finding in result.findings { print(finding) }
        let counts = result.counts
        print(
            """
            \(counts.operations) operations, \(counts.acknowledgedOperations) acknowledged, \(counts.sends) sends, \
            \(counts.polledRecords) records read, \(counts.offsetCommits) offsets committed; transactions: \
            \(counts.committedTransactions) committed, \(counts.abortedTransactions) aborted, \
            \(counts.unknownTransactions) of unknown end; \(result.findings.count) anomalies
            """)
        if !result.findings.isEmpty { throw ExitCode(1) }
    }
}
