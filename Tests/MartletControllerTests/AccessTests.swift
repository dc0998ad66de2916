import MartletController
import MartletKafkaProtocol
import MartletLogModel
import MartletTestSupport
import NIOCore
import Testing

@Suite struct `Quotas, credentials and access control` {
    private func quota(
        _ entity: [(String, String?)], _ changes: [(String, Double?)]
    ) -> AlterClientQuotasRequest.EntryData {
        var entry = AlterClientQuotasRequest.EntryData()
        entry.entity = entity.map {
            var part = AlterClientQuotasRequest.EntityData()
            part.entityType = $0.0
            part.entityName = $0.1
            return part
        }
        entry.ops = changes.map {
            var operation = AlterClientQuotasRequest.OpData()
            operation.key = $0.0
            operation.value = $0.1 ?? 0
            operation.remove = $0.1 == nil
            return operation
        }
        return entry
    }

    private func alter(
        _ harness: ClusterHarness, _ entries: [AlterClientQuotasRequest.EntryData], validateOnly: Bool = false
    ) throws -> [ErrorCode] {
        var request = AlterClientQuotasRequest()
        request.entries = entries
        request.validateOnly = validateOnly
        return try harness.decide { controller, _ in controller.decide(request) }.entries.map(
            \.errorCode.code)
    }

    private func describe(
        _ image: MetadataImage, _ components: [(String, Int8, String?)], strict: Bool = false
    ) -> [[String]] {
        var request = DescribeClientQuotasRequest()
        request.components = components.map {
            var component = DescribeClientQuotasRequest.ComponentData()
            component.entityType = $0.0
            component.matchType = $0.1
            component.match = $0.2
            return component
        }
        request.strict = strict
        return (image.describe(request).entries ?? []).map { entry in
            entry.entity.map { "\($0.entityType)=\($0.entityName ?? "*")" }
                + entry.values.map { "\($0.key):\($0.value)" }
        }
    }

    @Test func `KIP-546: quotas are set, shown, changed and removed`() throws {
        let harness = try ClusterHarness(brokers: 1)
        #expect(
            try alter(
                harness,
                [
                    quota(
                        [("user", "ann"), ("client-id", nil)],
                        [("producer_byte_rate", 1000), ("request_percentage", 12.5)]),
                    quota([("user", nil)], [("consumer_byte_rate", 5)]),
                    quota([("ip", "10.0.0.1")], [("connection_creation_rate", 3)]),
                ]) == [.none, .none, .none])
        #expect(harness.delta.accessChanged)
        #expect(describe(harness.image, [("user", 2, nil)]).count == 2)
        #expect(describe(harness.image, [("user", 1, nil)]) == [["user=*", "consumer_byte_rate:5.0"]])
        #expect(
            describe(harness.image, [("user", 0, "ann")])
                == [["client-id=*", "user=ann", "producer_byte_rate:1000.0", "request_percentage:12.5"]])
        #expect(describe(harness.image, [("user", 0, "ann")], strict: true).isEmpty)
        let count = harness.log.count
        #expect(try alter(harness, [quota([("user", nil)], [("consumer_byte_rate", 5)])]) == [.none])
        #expect(harness.log.count == count)
        #expect(try alter(harness, [quota([("user", nil)], [("consumer_byte_rate", nil)])]) == [.none])
        #expect(describe(harness.image, [("user", 1, nil)]).isEmpty)
    }

    @Test func `what is no quota is refused, entity by entity`() throws {
        let harness = try ClusterHarness(brokers: 1)
        #expect(
            try alter(
                harness,
                [
                    quota([], [("producer_byte_rate", 1)]),
                    quota([("group", "g")], [("producer_byte_rate", 1)]),
                    quota([("user", "")], [("producer_byte_rate", 1)]),
                    quota([("user", "u")], [("speed", 1)]),
                    quota([("user", "v")], [("producer_byte_rate", 0)]),
                    quota([("user", "w")], [("producer_byte_rate", 1.5)]),
                    quota([("ip", "1.1.1.1")], [("producer_byte_rate", 1)]),
                    quota([("ip", "1.1.1.1"), ("user", "u")], [("connection_creation_rate", 1)]),
                    quota([("user", "x")], [("producer_byte_rate", .infinity)]),
                    quota([("user", "fine")], [("producer_byte_rate", 1)]),
                ]) == Array(repeating: .invalidRequest, count: 9) + [.none])
        #expect(harness.image.clientQuotas.entityCount == 1)
        #expect(
            try alter(harness, [quota([("user", "y")], [("producer_byte_rate", 1)])], validateOnly: true) == [
                .none
            ])
        #expect(harness.image.clientQuotas.entityCount == 1)
    }

    @Test func `KIP-554: credentials are kept as keys, and shown without them`() throws {
        let harness = try ClusterHarness(brokers: 1)
        func upsert(_ name: String, _ mechanism: Int8, _ iterations: Int32)
            -> AlterUserScramCredentialsRequest.ScramCredentialUpsertion
        {
            var upsertion = AlterUserScramCredentialsRequest.ScramCredentialUpsertion()
            upsertion.name = name
            upsertion.mechanism = mechanism
            upsertion.iterations = iterations
            upsertion.salt = ByteBuffer(bytes: [1, 2])
            upsertion.saltedPassword = ByteBuffer(bytes: [3, 4])
            return upsertion
        }
        func alter(_ request: AlterUserScramCredentialsRequest) throws -> [String: ErrorCode] {
            let response = try harness.decide { controller, _ in
                controller.decide(request) { mechanism, password in
                    ([UInt8(mechanism.rawValue)] + password, [9])
                }
            }
            return Dictionary(uniqueKeysWithValues: response.results.map { ($0.user, $0.errorCode.code) })
        }
        var request = AlterUserScramCredentialsRequest()
        request.upsertions = [
            upsert("ann", 1, 4096), upsert("ann", 2, 8192), upsert("bob", 3, 4096), upsert("cid", 1, 100),
            upsert("dan", 1, 4096), upsert("dan", 1, 4096), upsert("", 1, 4096),
        ]
        #expect(
            try alter(request) == [
                "ann": .none, "bob": .unsupportedSaslMechanism, "cid": .unacceptableCredential,
                "dan": .duplicateResource, "": .unacceptableCredential,
            ])
        let credential = harness.image.credential(of: .init(name: "ann", mechanism: .sha512))
        #expect(
            credential?.storedKey == [2, 3, 4] && credential?.serverKey == [9]
                && credential?.iterations == 8192)
        let shown = harness.image.describe(DescribeUserScramCredentialsRequest())
        #expect(shown.results.map(\.user) == ["ann"])
        #expect(shown.results[0].credentialInfos.map(\.iterations) == [4096, 8192])

        var removal = AlterUserScramCredentialsRequest()
        for (name, mechanism) in [("ann", 1), ("eve", 1)] as [(String, Int8)] {
            var deletion = AlterUserScramCredentialsRequest.ScramCredentialDeletion()
            deletion.name = name
            deletion.mechanism = mechanism
            removal.deletions.append(deletion)
        }
        #expect(try alter(removal) == ["ann": .none, "eve": .resourceNotFound])
        #expect(harness.image.credentialCount == 1)
    }

    @Test func `all of it is in the snapshot`() throws {
        let harness = try ClusterHarness(brokers: 2)
        _ = try alter(harness, [quota([("user", "ann")], [("producer_byte_rate", 7)])])
        var rule = AccessControlEntryRecord()
        rule.id = UniversalID(high: 5, low: 5)
        rule.resourceType = 2
        rule.resourceName = "t"
        rule.patternType = 3
        rule.principal = "User:ann"
        rule.host = "*"
        rule.operation = 3
        rule.permissionType = 3
        var gone = rule
        gone.id = UniversalID(high: 6, low: 6)
        var removal = RemoveAccessControlEntryRecord()
        removal.id = gone.id
        var credential = UserScramCredentialRecord()
        credential.name = "ann"
        credential.mechanism = 1
        credential.salt = ByteBuffer(bytes: [1])
        credential.iterations = 4096
        try harness.append(
            Decision(
                records: [
                    .accessControlEntry(rule), .accessControlEntry(gone), .removeAccessControlEntry(removal),
                    .userScramCredential(credential),
                ], response: ()))
        var loaded = ClusterController(localBroker: BrokerID(0))
        for record in harness.snapshotRecords() { try loaded.replay(record, at: Offset(1)) }
        let image = loaded.publish().image
        #expect(try ClusterHarness.bytes(image.snapshotRecords()) == harness.snapshotBytes())
        #expect(image.sortedAccessControls().map(\.id) == [rule.id])
        #expect(image.sortedAccessControls().map(\.rule.principal) == ["User:ann"])
        #expect(image.credentialCount == 1)
        #expect(image.clientQuotas.entityCount == 1)
    }
}

@Suite struct `Features and batches of records` {
    private func update(
        _ harness: ClusterHarness, _ changes: [(String, Int16, Int8)], validateOnly: Bool = false
    ) throws -> UpdateFeaturesResponse {
        var request = UpdateFeaturesRequest()
        request.featureUpdates = changes.map {
            var update = UpdateFeaturesRequest.FeatureUpdateKey()
            update.feature = $0.0
            update.maxVersionLevel = $0.1
            update.upgradeType = $0.2
            return update
        }
        request.validateOnly = validateOnly
        return try harness.decide { controller, _ in controller.decide(request) }
    }

    @Test func `KIP-584: levels rise and, when asked for, fall; all updates or none`() throws {
        let harness = try ClusterHarness()
        #expect(harness.image.usesEligibleLeaderReplicas)
        let refused = try update(harness, [("group.version", 0, 2), ("share.version", 0, 1)])
        #expect(refused.errorCode.code == .invalidUpdateVersion)
        #expect(refused.results.map(\.errorCode.code) == [.none, .invalidUpdateVersion])
        #expect(harness.image.featureLevel("group.version") == 1)
        #expect(try update(harness, [("group.version", 0, 2)], validateOnly: true).errorCode == 0)
        #expect(harness.image.featureLevel("group.version") == 1)
        #expect(try update(harness, [("group.version", 0, 2)]).errorCode == 0)
        #expect(harness.image.featureLevel("group.version") == 0)
        for (name, level, type) in [
            ("nonsense", 1, 1), ("kraft.version", 0, 1), ("metadata.version", 20, 3), ("group.version", 9, 1),
            ("group.version", 1, 0),
        ] as [(String, Int16, Int8)] {
            #expect(
                try update(harness, [(name, level, type)]).errorCode.code == .invalidUpdateVersion, "\(name)")
        }
    }

    @Test func `a broker that lacks a level keeps the cluster from it`() throws {
        let harness = try ClusterHarness(brokers: 1, elr: false)
        #expect(
            try harness.register(
                1, features: Features.supported.filter { $0.name != Features.eligibleLeaderReplicas }
            ).errorCode == 0)
        #expect(
            try update(harness, [(Features.eligibleLeaderReplicas, 1, 1)]).errorCode.code
                == .invalidUpdateVersion)
        var request = UnregisterBrokerRequest()
        request.brokerID = 1
        _ = try harness.decide { controller, _ in controller.decide(request) }
        #expect(try update(harness, [(Features.eligibleLeaderReplicas, 1, 1)]).errorCode == 0)
        #expect(harness.image.usesEligibleLeaderReplicas)
    }

    @Test func `KIP-868: a large decision is a transaction, and half of one never shows`() throws {
        let harness = try ClusterHarness(brokers: 3)
        var request = CreateTopicsRequest()
        request.topics = [ControllerHarness.topic("big", partitions: 25_000, replicas: 3)]
        let decision = harness.query { controller in
            var generator = SeededGenerator(seed: 3)
            return controller.decide(request, generator: &generator)
        }
        #expect(decision.batches.map(\.count) == [10_000, 10_000, 5_003])
        var core = ClusterController(localBroker: BrokerID(0), isFollowing: true)
        for record in harness.log { try core.replay(record, at: Offset(0)) }
        let before = try ClusterHarness.bytes(core.publish().image.snapshotRecords())
        for record in decision.batches[0] { try core.replay(record, at: Offset(1)) }
        let isOpen = core.isInTransaction
        let half = core.publish()
        #expect(isOpen)
        #expect(half.image.topicCount == 0 && half.delta.isEmpty)
        // The controller that wrote half of it is gone; the next one undoes it.
        let first = core.activate(now: Instant(nanoseconds: 0))
        #expect(first.count == 1)
        for record in first { try core.replay(record, at: Offset(2)) }
        let after = core.publish().image
        #expect(try ClusterHarness.bytes(after.snapshotRecords()) == before)
        let again = core.decide(request, generator: &harness.generator).response
        #expect(again.topics[0].errorCode == 0)
        for batch in decision.batches { for record in batch { try core.replay(record, at: Offset(3)) } }
        let whole = core.publish().image
        #expect(whole.partitionCount == 25_000)
        do {
            try core.replay(.endTransaction(EndTransactionRecord()), at: Offset(4))
            Issue.record("the end of no transaction was taken")
        } catch {
            #expect(error == .transactionOpen(false))
        }
    }

    @Test func `a fenced broker's partitions come in batches that stand by themselves`() throws {
        let harness = try ClusterHarness(brokers: 3)
        try harness.create("big", partitions: 16_000, replicas: 2)
        let epoch = try #require(harness.epochs[0])
        let decision = harness.query { $0.decideFencing(of: BrokerID(0), epoch: epoch) }
        #expect(decision.records.count > ControllerLimits.recordsPerBatchLimit)
        #expect(!decision.isAtomic && decision.batches.count == 2)
        #expect(decision.batches.flatMap { $0 } == decision.records)
        // The fencing itself comes last: a controller that dies before leaves a broker that falls silent again.
        guard case .brokerRegistrationChange = decision.records.last else {
            Issue.record("the last record is \(String(describing: decision.records.last))")
            return
        }
        try harness.append(decision)
        #expect(
            try #require(harness.image.topic(named: "big")).partitions.allSatisfy { $0.leader != BrokerID(0) }
        )
    }

    @Test func `records of another run of a broker are an error`() throws {
        let harness = try ClusterHarness(brokers: 1)
        var change = BrokerRegistrationChangeRecord()
        change.brokerID = 0
        change.brokerEpoch = 1
        change.fenced = 1
        #expect(throws: ReplayError.self) {
            try harness.append(Decision(records: [.brokerRegistrationChange(change)], response: ()))
        }
    }
}
