import MartletTestSupport
import Testing

/// Each scenario starts a broker of its own. One at a time: rebalances and restarts have deadlines, which a
/// machine that runs ten of them at once would miss for no fault of the broker.
@Suite(.serialized) struct ForeignClientTests {
    @Test(
        .enabled(if: ForeignClients.kcat != nil && ForeignClients.plainPython != nil, ForeignClients.kcatAbsent),
        .timeLimit(.minutes(3)), arguments: Findings.scenarios("kcat_client"))
    func `kcat holds`(scenario: String) throws {
        try ForeignClients.hold("kcat_client", scenario, seconds: 150)
    }

    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(3)),
        arguments: Findings.scenarios("confluent_client"))
    func `confluent-kafka holds`(scenario: String) throws {
        try ForeignClients.hold("confluent_client", scenario, seconds: 150)
    }

    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(4)),
        arguments: Findings.scenarios("share_client"))
    func `the share consumer of confluent-kafka holds`(scenario: String) throws {
        try ForeignClients.hold("share_client", scenario, seconds: 220)
    }

    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(3)),
        arguments: Findings.scenarios("kafka_python_client"))
    func `kafka-python holds`(scenario: String) throws {
        try ForeignClients.hold("kafka_python_client", scenario, seconds: 150)
    }

    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(3)),
        arguments: Findings.scenarios("aiokafka_client"))
    func `aiokafka holds`(scenario: String) throws {
        try ForeignClients.hold("aiokafka_client", scenario, seconds: 150)
    }

    @Test(
        .enabled(if: ForeignClients.plainPython != nil, "no python3 in PATH"), .timeLimit(.minutes(2)),
        arguments: Findings.scenarios("api_versions"))
    func `ApiVersions tells exactly what is served`(scenario: String) throws {
        try ForeignClients.hold("api_versions", scenario, seconds: 60)
    }

    @Test(
        .enabled(
            if: ForeignClients.python != nil && ForeignClients.kcat != nil && BuildProducts.sharedData != nil,
            ForeignClients.dataAbsent),
        .timeLimit(.minutes(5)), arguments: Findings.scenarios("market"))
    func `real market data comes out identical`(scenario: String) throws {
        try ForeignClients.hold("market", scenario, seconds: 270)
    }

    @Test(
        .enabled(if: ForeignClients.plainPython != nil, "no python3 in PATH"), .timeLimit(.minutes(3)),
        arguments: Findings.scenarios("hostile"))
    func `bad input harms nobody`(scenario: String) throws {
        try ForeignClients.hold("hostile", scenario, seconds: 170)
    }

    /// `Tools/test --long`: a thousand rounds with a seed of their own, which the scenario prints.
    @Test(
        .enabled(if: ForeignClients.plainPython != nil, "no python3 in PATH"), .timeLimit(.minutes(90)),
        arguments: Findings.scenarios("crash"))
    func `kill -9 loses nothing acknowledged`(scenario: String) throws {
        let rounds = BuildProducts.isLong ? 1000 : 200
        let seed = BuildProducts.isLong ? UInt32.random(in: 1...UInt32.max) : 20_260_131
        try ForeignClients.hold(
            "crash", scenario, seconds: 60 + 5 * rounds,
            environment: ["CRASH_ROUNDS": "\(rounds)", "CRASH_SEED": "\(seed)"])
    }

    /// `Tools/test --long`: 500 rounds with a seed of their own, which the scenario prints. The simulator's checker
    /// judges what the clients saw.
    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(60)),
        arguments: Findings.scenarios("recorded_copy"))
    func `transactional copying over kill -9 has a clean history`(scenario: String) throws {
        let rounds = BuildProducts.isLong ? 500 : 12
        let seed = BuildProducts.isLong ? UInt32.random(in: 1...UInt32.max) : 20_260_131
        try ForeignClients.hold(
            "recorded_copy", scenario, seconds: 240 + 7 * rounds,
            environment: ["COPY_ROUNDS": "\(rounds)", "COPY_SEED": "\(seed)"])
    }

    /// `Tools/test --long`: 200 rounds with a seed of their own, which the scenario prints.
    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(90)),
        arguments: Findings.scenarios("cluster"))
    func `three brokers go on when one of them stops`(scenario: String) throws {
        let rounds = BuildProducts.isLong ? 200 : 6
        let seed = BuildProducts.isLong ? UInt32.random(in: 1...UInt32.max) : 20_260_131
        try ForeignClients.hold(
            "cluster", scenario, seconds: 240 + 20 * rounds,
            environment: ["CLUSTER_ROUNDS": "\(rounds)", "CLUSTER_SEED": "\(seed)"])
    }

    @Test(
        .enabled(if: ForeignClients.python != nil, ForeignClients.venvAbsent), .timeLimit(.minutes(1)),
        arguments: [
            "kcat_client", "confluent_client", "kafka_python_client", "aiokafka_client", "api_versions", "market",
            "hostile", "crash", "share_client", "recorded_copy", "cluster",
        ])
    func `every scenario of a script is listed in the findings, once`(script: String) throws {
        let listed = (Findings.read.holds[script] ?? []) + (Findings.read.doesNotHold[script] ?? [])
        #expect(try listed.sorted() == ForeignClients.scenarios(of: script).sorted())
    }
}
