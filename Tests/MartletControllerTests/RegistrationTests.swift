import MartletController
import MartletKafkaProtocol
import MartletLogModel
import Testing

@Suite struct `Registration of brokers` {
    @Test func `KIP-631: the epoch of a run is the offset of its record, and a broker comes in fenced`()
        throws
    {
        let harness = try ClusterHarness(brokers: 2)
        let response = try harness.register(2)
        #expect(response.errorCode == 0)
        #expect(response.brokerEpoch == Int64(harness.log.count) - 1)
        let broker = try #require(harness.image.broker(BrokerID(2)))
        #expect(broker.isFenced)
        #expect(broker.endpoints.map(\.host) == ["host-2"])
        #expect(harness.delta.changedBrokers == [BrokerID(2)])
        // Not before it has replayed its own registration.
        let early = try harness.beat(2, offset: response.brokerEpoch - 1)
        #expect(early.isFenced && !early.isCaughtUp)
        let late = try harness.beat(2, offset: response.brokerEpoch)
        #expect(!late.isFenced && late.isCaughtUp)
    }

    @Test func `INCONSISTENT_CLUSTER_ID: a broker of another cluster is refused`() throws {
        let harness = try ClusterHarness(brokers: 1)
        #expect(try harness.register(1, cluster: "another").errorCode.code == .inconsistentClusterID)
        #expect(harness.image.brokers.count == 1)
    }

    @Test
    func `DUPLICATE_BROKER_REGISTRATION: a second process under one id waits until the session is over`()
        throws
    {
        let harness = try ClusterHarness(brokers: 3)
        let first = try #require(harness.image.broker(BrokerID(1)))
        #expect(try harness.register(1).errorCode.code == .duplicateBrokerRegistration)
        #expect(harness.image.broker(BrokerID(1)) == first)
        harness.crash(1)
        try harness.pass(milliseconds: 2500)
        #expect(try harness.register(1).errorCode.code == .duplicateBrokerRegistration)
        try harness.pass(milliseconds: 1000)
        #expect(harness.image.broker(BrokerID(1))?.isFenced == true)
        let again = try harness.register(1)
        #expect(again.errorCode == 0)
        #expect(again.brokerEpoch > first.epoch)
        // The run before is known as such.
        #expect(try harness.beat(1, epoch: first.epoch).errorCode.code == .staleBrokerEpoch)
        #expect(try harness.beat(9, epoch: 1).errorCode.code == .brokerIDNotRegistered)
    }

    @Test func `the same process asking again keeps its epoch, and may amend what it said`() throws {
        let harness = try ClusterHarness(brokers: 1)
        let incarnation = UniversalID(high: 9, low: 9)
        let first = try harness.register(1, incarnation: incarnation)
        let count = harness.log.count
        #expect(try harness.register(1, incarnation: incarnation).brokerEpoch == first.brokerEpoch)
        #expect(harness.log.count == count)
        let directory = UniversalID(high: 7, low: 4711)
        #expect(
            try harness.register(1, incarnation: incarnation, directories: [directory]).brokerEpoch
                == first.brokerEpoch)
        #expect(harness.image.broker(BrokerID(1))?.logDirectories == [directory])
    }

    @Test func `INVALID_REGISTRATION: two brokers on one directory, a directory twice, a reserved one`()
        throws
    {
        let harness = try ClusterHarness(brokers: 1)
        let taken = try #require(harness.image.broker(BrokerID(0))?.logDirectories)
        #expect(try harness.register(1, directories: taken).errorCode.code == .invalidRegistration)
        let own = UniversalID(high: 7, low: 5000)
        #expect(try harness.register(1, directories: [own, own]).errorCode.code == .invalidRegistration)
        #expect(
            try harness.register(1, directories: [LogDirectoryID.lost]).errorCode.code == .invalidRegistration
        )
        #expect(try harness.register(1, incarnation: .zero).errorCode.code == .invalidRegistration)
        #expect(try harness.register(1, directories: [own]).errorCode == 0)
    }

    @Test func `UNSUPPORTED_VERSION: a broker that lacks a finalized level is refused`() throws {
        let harness = try ClusterHarness(brokers: 1)
        var features = Features.supported
        features.removeAll { $0.name == Features.metadataVersion }
        #expect(try harness.register(1, features: features).errorCode.code == .unsupportedVersion)
        features.append(.init(name: Features.metadataVersion, minimum: 1, maximum: 29))
        #expect(try harness.register(1, features: features).errorCode.code == .unsupportedVersion)
    }

    @Test func `a new controller gives every broker a whole session`() throws {
        let harness = try ClusterHarness(brokers: 3)
        harness.crash(2)
        try harness.pass(milliseconds: 2500)
        try harness.failOver(loading: true)
        try harness.pass(milliseconds: 2500)
        #expect(harness.image.broker(BrokerID(2))?.isFenced == false)
        try harness.pass(milliseconds: 500)
        #expect(harness.image.broker(BrokerID(2))?.isFenced == true)
        #expect(harness.image.activeBrokerCount == 2)
    }

    @Test func `a probe fences at once, and only the run that it found dead`() throws {
        let harness = try ClusterHarness(brokers: 3)
        let epoch = try #require(harness.epochs[1])
        #expect(
            try harness.decide { controller, _ in controller.decideFencing(of: BrokerID(1), epoch: epoch - 1)
            } == false)
        #expect(
            try harness.decide { controller, _ in controller.decideFencing(of: BrokerID(1), epoch: epoch) })
        #expect(harness.image.broker(BrokerID(1))?.isFenced == true)
        #expect(try harness.beat(1).isFenced == false)
    }

    @Test func `UnregisterBroker takes a broker out of every in-sync and eligible set`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2], [2, 0, 1]], configs: [("min.insync.replicas", "3")])
        harness.crash(2)
        try harness.pass(milliseconds: 3500)
        #expect(try harness.line("t") == "0/0,1/2/ e0")
        var request = UnregisterBrokerRequest()
        request.brokerID = 2
        #expect(try harness.decide { controller, _ in controller.decide(request) }.errorCode == 0)
        #expect(try harness.line("t") == "0/0,1// e0")
        #expect(harness.image.broker(BrokerID(2)) == nil)
        #expect(try harness.partition("t").replicas.count == 3)
        #expect(
            try harness.decide { controller, _ in controller.decide(request) }.errorCode.code
                == .brokerIDNotRegistered)
    }

    @Test func `a cluster of one restarts without a record for its partitions`() throws {
        let harness = try ClusterHarness(brokers: 1)
        try harness.create("t", partitions: 10, replicas: 1)
        let before = try harness.partition("t")
        harness.crash(0)
        try harness.failOver(loading: true)
        try harness.pass(milliseconds: 3500)
        let count = harness.log.count
        #expect(try harness.start(0) == .none)
        #expect(harness.log.count == count + 2)
        #expect(try harness.partition("t") == before)
        #expect(try harness.beat(0, wantShutDown: true).shouldShutDown)
        #expect(try harness.partition("t") == before)
    }
}

@Suite struct `Controlled shutdown` {
    @Test func `leaders move first, and the broker goes when every other knows`() throws {
        let harness = try ClusterHarness()
        try harness.create(
            "t", [[0, 1, 2], [1, 2, 0], [2, 0, 1]], configs: [("min.insync.replicas", "2")])
        let first = try harness.beat(1, wantShutDown: true)
        #expect(!first.shouldShutDown && !first.isFenced)
        #expect(harness.image.broker(BrokerID(1))?.isInControlledShutdown == true)
        #expect(try harness.line("t", 1) == "2/2,0// e1")
        #expect(try harness.line("t", 0) == "0/0,2// e0")
        // No new member in its name, no new partition on it.
        #expect(try harness.alter("t", 0, isr: [0, 1, 2]) == .ineligibleReplica)
        #expect(
            try harness.create("u", partitions: 1, replicas: 3).errorCode.code == .invalidReplicationFactor)
        let loss = Int64(harness.log.count) - 1
        try harness.beat(0, offset: loss)
        #expect(try !harness.beat(1, wantShutDown: true).shouldShutDown)
        try harness.beat(2, offset: loss)
        let last = try harness.beat(1, wantShutDown: true)
        #expect(last.shouldShutDown && last.isFenced)
        #expect(harness.image.broker(BrokerID(1))?.isFenced == true)
    }

    @Test func `a broker that leads nothing goes at once, a fenced one as well`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[0, 1, 2]])
        #expect(try harness.beat(1, wantShutDown: true).shouldShutDown)
        #expect(harness.image.broker(BrokerID(1))?.isFenced == true)
        #expect(try harness.line("t") == "0/0,2// e0")
        #expect(try harness.beat(1, wantShutDown: true).shouldShutDown)
    }

    @Test func `a new controller goes on with a shutdown under way`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[1, 0, 2]])
        _ = try harness.beat(1, wantShutDown: true)
        try harness.failOver(loading: false)
        #expect(try !harness.beat(1, wantShutDown: true).shouldShutDown)
        try harness.beat(0)
        try harness.beat(2)
        #expect(try harness.beat(1, wantShutDown: true).shouldShutDown)
    }

    @Test func `what only the leaving broker has stays its own, and comes back with it`() throws {
        let harness = try ClusterHarness()
        try harness.create("t", [[1]])
        let epoch = try harness.stop(1)
        #expect(try harness.line("t") == "-//1/1 e1")
        #expect(try harness.start(1, previous: epoch) == .none)
        #expect(try harness.line("t") == "1/1// e2")
    }
}
