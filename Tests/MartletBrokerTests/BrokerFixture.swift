import Logging
import MartletBroker
import MartletTestSupport

/// Runs `body` against a broker in a folder of its own, and stops the broker whatever happens.
func withBroker(
    _ settings: [String: String] = [:], folder: String? = nil,
    _ body: (Broker) async throws -> Void
) async throws {
    if let folder {
        try await run(settings, folder: folder, body)
    } else {
        try await withTemporaryFolder { try await run(settings, folder: $0, body) }
    }
}

private func run(
    _ settings: [String: String], folder: String, _ body: (Broker) async throws -> Void
) async throws {
    var broker = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: folder)
    broker.reserveBytes = 0
    for (key, value) in settings.sorted(by: { $0.key < $1.key }) { try broker.set(key, value, origin: "test") }
    var logger = Logger(label: "test")
    logger.logLevel = .error
    let running = try await Broker.start(broker, logger: logger)
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
