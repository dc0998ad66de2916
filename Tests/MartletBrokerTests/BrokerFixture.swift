import Logging
import MartletBroker
import MartletTestSupport

/// Runs `body` against a broker in a folder of its own, and stops the broker whatever happens.
func withBroker(
    _ settings: [String: String] = [:], folder: String? = nil, eventLoopCount: Int? = nil, logger: Logger? = nil,
    _ body: (Broker) async throws -> Void
) async throws {
    if let folder {
        try await run(settings, folder, eventLoopCount, logger, body)
    } else {
        try await withTemporaryFolder { try await run(settings, $0, eventLoopCount, logger, body) }
    }
}

private func run(
    _ settings: [String: String], _ folder: String, _ eventLoopCount: Int?, _ logger: Logger?,
    _ body: (Broker) async throws -> Void
) async throws {
    var broker = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder)
    broker.reserveBytes = 0
    broker.eventLoopCount = eventLoopCount
    for (key, value) in settings.sorted(by: { $0.key < $1.key }) { try broker.set(key, value, origin: "test") }
    var quiet = Logger(label: "test")
    quiet.logLevel = .error
    let running = try await Broker.start(broker, logger: logger ?? quiet)
    do {
        try await body(running)
    } catch {
        await running.shutDown()
        throw error
    }
    await running.shutDown()
}

/// Runs `body` with the path of a temporary folder that is removed afterwards.
func withTemporaryFolder(_ body: (String) async throws -> Void) async throws {
    let folder = TemporaryFolder()
    defer { folder.remove() }
    try await body(folder.path)
}
