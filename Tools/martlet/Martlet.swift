import ArgumentParser
import MartletClient
import MartletMarketData

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#endif

/// Root of the command line: verbs under nouns, one shape of options everywhere.
struct Martlet: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "martlet",
        abstract: "Work with Martlet, and with any other Kafka cluster.",
        discussion: """
            Every command that talks to a cluster takes --bootstrap
            HOST:PORT[,HOST:PORT…]; without it the environment variable
            MARTLET_BOOTSTRAP counts, and without that 127.0.0.1:9092. Listings take
            --json.

            A first look:
              martlet broker start
              martlet topic create orders --partitions 4
              echo 'AAPL:100' | martlet produce orders --key-separator :
              martlet consume orders --format '%p/%o %k=%s\\n'

            Exit codes: 0 done, 1 refused or failed, 64 wrong usage, 69 no broker
            reachable, 74 file trouble, 75 time ran out, 130 interrupted.
            """,
        version: Version.text,
        subcommands: [
            TopicCommand.self, ProduceCommand.self, ConsumeCommand.self, GroupCommand.self,
            TxnCommand.self, ConfigCommand.self,
            ClusterCommand.self, LogCommand.self, BrokerCommand.self, DevCommand.self, BenchCommand.self,
            MarketCommand.self, CompletionCommand.self,
        ])
}

enum Version {
    /// Part of the output of `martlet --version`; the same for daemon and CLI of one release.
    static let text = "0.1.0"
}

/// Writes the shell completion script; the same as `--generate-completion-script`, but found by reading help.
struct CompletionCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "completion",
        abstract: "Print the completion script of a shell.",
        discussion: """
            Examples:
              martlet completion bash > ~/.local/share/bash-completion/completions/martlet
              martlet completion zsh > ~/.zfunc/_martlet
              martlet completion fish > ~/.config/fish/completions/martlet.fish
            """)

    @Argument(help: "bash, zsh or fish.") var shell: String

    func run() throws {
        guard let shell = CompletionShell(rawValue: shell) else {
            throw CommandFailure(
                "no completion for the shell '\(shell)'", remedy: "name bash, zsh or fish", exitCode: .usage)
        }
        print(Martlet.completionScript(for: shell))
    }
}

@main
enum Entry {
    static func main() async {
        // A reader of our output that went away is an error of write(2), not a signal.
        signal(SIGPIPE, SIG_IGN)
        let arguments = KafkaToolNames.rewrite(Array(CommandLine.arguments.dropFirst()))
        do {
            var command = try Martlet.parseAsRoot(arguments)
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
        } catch {
            report(error)
        }
    }

    /// One line on standard error: what failed, why, what helps; then the exit code of that kind of failure.
    private static func report(_ error: any Error) -> Never {
        switch CommandFailure(describing: error) {
        case let failure?:
            if !failure.cause.isEmpty { Console.complain(failure.description) }
            exit(failure.exitCode.rawValue)
        case nil:
            // Usage errors, help, version: the argument parser knows how to print them.
            Martlet.exit(withError: error)
        }
    }
}
