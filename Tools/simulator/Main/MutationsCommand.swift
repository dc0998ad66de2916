import ArgumentParser
import Glibc
import MartletLogModel
import MartletSimulation

struct MutationsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mutations", abstract: "Suspends one rule after the other and counts the seeds until it shows.")

    @Option(help: "How often each rule is looked for, each time from another seed on.")
    var rounds = 5

    @Option(help: "Seeds of a round after which it gives up.")
    var limit: UInt64 = 40

    @Option(help: "Virtual minutes of a seed.")
    var minutes: Int64 = 10

    @Option(help: "Only this rule.")
    var rule: String?

    func run() async throws {
        let wanted = try RunCommand.rule(rule)
        var unfound = 0
        print("| Rule switched off | Found in rounds | Median seeds until found | First problem |")
        print("|---|---|---|---|")
        for (name, rule) in SuspendedRules.named where wanted.isEmpty || wanted == rule {
            var counts: [UInt64] = []
            var example = ""
            for round in 0..<rounds {
                let first = UInt64(round) * 1_000_000
                for seed in first..<first + limit {
                    var options = SimulationOptions(seed: seed)
                    options.minutes = minutes
                    options.rules = rule
                    let result = await Simulation.run(options)
                    guard result.failed else { continue }
                    counts.append(seed - first + 1)
                    if example.isEmpty { example = result.problems.first ?? "" }
                    break
                }
            }
            if counts.isEmpty { unfound += 1 }
            let median = counts.sorted().dropFirst((max(1, counts.count) - 1) / 2).first.map(String.init) ?? "-"
            print("| \(name) | \(counts.count) of \(rounds) | \(median) | \(example.prefix(90)) |")
            fflush(nil)
        }
        if unfound > 0 { throw ExitCode(1) }
    }
}
