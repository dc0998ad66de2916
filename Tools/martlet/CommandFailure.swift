import MartletClient
import MartletLogModel
import MartletMarketData

/// Exit codes after BSD's sysexits.h where it has one.
enum ExitStatus: Int32 {
    case failed = 1
    case usage = 64
    case unavailable = 69
    case file = 74
    case timedOut = 75
    case interrupted = 130
    /// Reader of standard output went away; nothing to say.
    case quiet = 0
}

/// Why a command ends without having done its work: the cause, and what the user can do about it.
struct CommandFailure: Error, CustomStringConvertible {
    var cause: String
    var remedy: String
    var exitCode: ExitStatus

    init(_ cause: String, remedy: String = "", exitCode: ExitStatus = .failed) {
        self.cause = cause
        self.remedy = remedy
        self.exitCode = exitCode
    }

    var description: String { remedy.isEmpty ? cause : "\(cause)\n  → \(remedy)" }

    /// `nil` for errors that the argument parser made and prints itself.
    init?(describing error: any Error) {
        switch error {
        case let failure as CommandFailure: self = failure
        case let error as ClientError: self.init(error)
        case let error as MarketDataError:
            self.init(error.description, exitCode: error.code == .badArgument ? .usage : .file)
        case is CancellationError: self.init("", exitCode: .interrupted)
        case _: return nil
        }
    }

    init(_ error: ClientError) {
        let exitCode: ExitStatus
        var remedy = ""
        switch error.code {
        case .brokersUnreachable:
            exitCode = .unavailable
            remedy =
                "is a broker running there? `martlet broker status` and `martlet broker start` tell and help; "
                + "--bootstrap HOST:PORT names another one"
        case .connectionLost: exitCode = .unavailable
        case .timedOut, .deliveryTimedOut: exitCode = .timedOut
        case .invalidConfiguration, .invalidArgument: exitCode = .usage
        case _: exitCode = .failed
        }
        var cause = error.message
        if let code = error.brokerCode, !cause.contains(code.name) { cause += " (\(code.name))" }
        if let beneath = error.cause.map({ "\($0)" }), !cause.contains(beneath) { cause += ": \(beneath)" }
        self.init(cause, remedy: remedy, exitCode: exitCode)
    }
}
