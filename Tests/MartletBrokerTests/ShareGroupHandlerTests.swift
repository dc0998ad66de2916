import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore
import Testing

/// A member of a share group with a connection of its own, as a client would be one.
private final class ShareClient {
    let wire: WireClient
    let group: String
    let member: String
    private var epoch: Int32 = 0
    private var sessionEpoch: Int32 = 0
    private(set) var assigned: [UniversalID: [Int32]] = [:]

    init(_ broker: Broker, _ group: String, _ member: String) throws {
        wire = try WireClient(port: broker.address.port)
        self.group = group
        self.member = member
        var request = FindCoordinatorRequest()
        request.coordinatorKeys = [group]
        #expect(try wire.call(request).coordinators.first?.errorCode == 0)
    }

    @discardableResult
    func beat(_ names: [String]? = nil, epoch wanted: Int32? = nil) throws -> ShareGroupHeartbeatResponse {
        var request = ShareGroupHeartbeatRequest()
        request.groupID = group
        request.memberID = member
        request.memberEpoch = wanted ?? epoch
        request.subscribedTopicNames = names
        let response = try wire.call(request)
        if response.errorCode == 0 { epoch = response.memberEpoch }
        if let assignment = response.assignment {
            assigned = Dictionary(
                uniqueKeysWithValues: assignment.topicPartitions.map { ($0.topicID, $0.partitions) })
        }
        return response
    }

    /// Joins and beats until it has something.
    func join(_ names: [String]) throws {
        try beat(names, epoch: 0)
        // The topic of the state is made meanwhile, which takes a few flushes of a disk that may be busy.
        for _ in 0..<20_000 where assigned.isEmpty { try beat() }
        #expect(!assigned.isEmpty, "\(member) of \(group) gets nothing")
    }

    func request(
        max: Int32 = 500, wait: Int32 = 0, batchSize: Int32 = 500, minBytes: Int32 = 1
    ) -> ShareFetchRequest {
        var request = ShareFetchRequest()
        request.groupID = group
        request.memberID = member
        request.shareSessionEpoch = sessionEpoch
        request.maxWaitMs = wait
        request.minBytes = minBytes
        request.maxBytes = 1 << 20
        request.maxRecords = max
        request.batchSize = batchSize
        if sessionEpoch == 0 {
            request.topics = assigned.sorted { $0.key < $1.key }.map { topic, partitions in
                var entry = ShareFetchRequest.FetchTopic()
                entry.topicID = topic
                entry.partitions = partitions.map {
                    var partition = ShareFetchRequest.FetchPartition()
                    partition.partitionIndex = $0
                    return partition
                }
                return entry
            }
        }
        return request
    }

    func call(_ request: ShareFetchRequest, version: Int16 = 2) throws -> ShareFetchResponse {
        let response = try wire.call(request, version: version)
        if response.errorCode == 0 { sessionEpoch += 1 }
        return response
    }

    /// Values with their offsets and how often they were delivered.
    func fetch(max: Int32 = 500, wait: Int32 = 0, strict: Bool = false) throws -> [String] {
        var request = request(max: max, wait: wait)
        request.shareAcquireMode = strict ? 1 : 0
        return try values(try call(request))
    }

    func values(_ response: ShareFetchResponse) throws -> [String] {
        #expect(response.errorCode == 0, "\(response.errorMessage ?? "")")
        var found: [String] = []
        for topic in response.responses {
            for partition in topic.partitions {
                #expect(partition.errorCode == 0, "\(partition.errorMessage ?? "")")
                var rest = partition.records
                while rest.readableBytes > 0 {
                    let header = try RecordBatchHeader(reading: rest)
                    guard let batch = rest.readSlice(length: header.totalByteCount) else { break }
                    var records = try RecordIterator(batch)
                    while let record = try records.next() {
                        guard
                            let range = partition.acquiredRecords.first(where: {
                                $0.firstOffset <= record.offset.rawValue && record.offset.rawValue <= $0.lastOffset
                            })
                        else { continue }
                        found.append(
                            "\(record.offset):\(record.value.map { String(buffer: $0) } ?? "null"):\(range.deliveryCount)"
                        )
                    }
                }
            }
        }
        return found
    }

    func acknowledge(
        _ topic: UniversalID, _ batches: [(Int64, Int64, [Int8])], partition: Int32 = 0,
        epoch wanted: Int32? = nil,
        renews: Bool = false
    ) throws -> ShareAcknowledgeResponse {
        var entry = ShareAcknowledgeRequest.AcknowledgePartition()
        entry.partitionIndex = partition
        entry.acknowledgementBatches = batches.map {
            var batch = ShareAcknowledgeRequest.AcknowledgementBatch()
            batch.firstOffset = $0.0
            batch.lastOffset = $0.1
            batch.acknowledgeTypes = $0.2
            return batch
        }
        var part = ShareAcknowledgeRequest.AcknowledgeTopic()
        part.topicID = topic
        part.partitions = [entry]
        var request = ShareAcknowledgeRequest()
        request.groupID = group
        request.memberID = member
        request.shareSessionEpoch = wanted ?? sessionEpoch
        request.isRenewAck = renews
        request.topics = batches.isEmpty ? [] : [part]
        let response = try wire.call(request, version: 2)
        if response.errorCode == 0, wanted == nil { sessionEpoch += 1 }
        return response
    }

    func code(_ topic: UniversalID, _ batches: [(Int64, Int64, [Int8])], renews: Bool = false) throws
        -> ErrorCode
    {
        let response = try acknowledge(topic, batches, renews: renews)
        let code =
            response.errorCode != 0
            ? response.errorCode : response.responses.first?.partitions.first?.errorCode
        return ErrorCode(rawValue: code ?? -1)
    }
}

/// Share groups (KIP-932) over the wire.
@Suite(.timeLimit(.minutes(3))) struct ShareGroupHandlerTests {
    /// Short locks for all groups.
    private static let quick = [
        "group.share.min.record.lock.duration.ms": "1000", "group.share.record.lock.duration.ms": "1000",
    ]

    private func configure(_ client: WireClient, _ group: String, _ values: [String: String?]) throws -> Int16
    {
        var resource = IncrementalAlterConfigsRequest.AlterConfigsResource()
        resource.resourceType = 32
        resource.resourceName = group
        resource.configs = values.sorted { $0.key < $1.key }.map {
            var config = IncrementalAlterConfigsRequest.AlterableConfig()
            config.name = $0.key
            config.value = $0.value
            config.configOperation = $0.value == nil ? 1 : 0
            return config
        }
        var request = IncrementalAlterConfigsRequest()
        request.resources = [resource]
        return try client.call(request).responses.first?.errorCode ?? -1
    }

    private func produce(_ client: WireClient, _ values: [String], _ topic: String = "t") throws {
        #expect(try client.produce(makeBatch(values), topic: topic).errorCode == 0)
    }

    private func summary(
        _ client: WireClient, _ group: String, topics: [String]? = nil
    ) throws -> [DescribeShareGroupOffsetsResponse.DescribeShareGroupOffsetsResponseTopic] {
        var asked = DescribeShareGroupOffsetsRequest.DescribeShareGroupOffsetsRequestGroup()
        asked.groupID = group
        asked.topics = topics?.map {
            var topic = DescribeShareGroupOffsetsRequest.DescribeShareGroupOffsetsRequestTopic()
            topic.topicName = $0
            topic.partitions = [0]
            return topic
        }
        var request = DescribeShareGroupOffsetsRequest()
        request.groups = [asked]
        let response = try client.call(request)
        #expect(response.groups.first?.errorCode == 0)
        return response.groups.first?.topics ?? []
    }

    private func withMembers(
        _ names: [String], settings: [String: String] = [:], config: [String: String?] = [:],
        partitions: Int32 = 1,
        _ body: (Broker, WireClient, UniversalID, [ShareClient]) throws -> Void
    ) async throws {
        try await withBroker(settings) { broker in
            let client = try WireClient(port: broker.address.port)
            let topic = try client.createTopic("t", partitions: partitions)
            let values = config.merging(["share.auto.offset.reset": "earliest"]) { given, _ in given }
            #expect(try configure(client, "g", values) == 0)
            let members = try names.map { try ShareClient(broker, "g", $0) }
            for member in members { try member.join(["t"]) }
            try body(broker, client, topic, members)
        }
    }

    @Test func `records are acquired, accepted, released and rejected, and the group's offsets follow`()
        async throws
    {
        try await withMembers(["a", "b"]) { broker, client, topic, members in
            let (a, b) = (members[0], members[1])
            try produce(client, ["v0", "v1", "v2"])
            try produce(client, ["v3"])
            #expect(try a.fetch(max: 2) == ["0:v0:1", "1:v1:1", "2:v2:1"])
            #expect(try b.fetch() == ["3:v3:1"])
            #expect(try a.fetch().isEmpty)
            #expect(try a.code(topic, [(0, 0, [1]), (1, 2, [2, 3])]) == .none)
            #expect(try a.code(topic, [(0, 0, [1])]) == .none, "what is before the start is passed over")
            #expect(try b.code(topic, [(1, 1, [1])]) == .invalidRecordState)
            // Acknowledged with the next fetch.
            var request = b.request()
            var acknowledgement = ShareFetchRequest.AcknowledgementBatch()
            acknowledgement.firstOffset = 3
            acknowledgement.lastOffset = 3
            acknowledgement.acknowledgeTypes = [1]
            var partition = ShareFetchRequest.FetchPartition()
            partition.acknowledgementBatches = [acknowledgement]
            var part = ShareFetchRequest.FetchTopic()
            part.topicID = topic
            part.partitions = [partition]
            request.topics = [part]
            let answer = try b.call(request)
            #expect(try b.values(answer) == ["1:v1:2"])
            #expect(answer.responses[0].partitions[0].acknowledgeErrorCode == 0)
            #expect(answer.acquisitionLockTimeoutMs == 30_000)
            let offsets = try summary(client, "g")
            #expect(offsets.map(\.topicName) == ["t"])
            #expect(offsets[0].partitions[0].startOffset == 1 && offsets[0].partitions[0].lag == 1)
            #expect(try b.code(topic, [(1, 1, [1])]) == .none)
            #expect(try summary(client, "g", topics: ["t"])[0].partitions[0].lag == 0)
            #expect(try summary(client, "g", topics: ["none"])[0].partitions[0].startOffset == -1)
            withExtendedLifetime(broker) {}
        }
    }

    @Test func `a fetch waits for records, for a release and for its time`() async throws {
        try await withMembers(["a", "b"]) { _, client, topic, members in
            let (a, b) = (members[0], members[1])
            #expect(try a.fetch().isEmpty && b.fetch().isEmpty)
            try a.wire.post(a.request(wait: 20_000), version: 2)
            try produce(client, ["v0", "v1"])
            #expect(try a.values(a.wire.read(ShareFetchResponse.self, version: 2)) == ["0:v0:1", "1:v1:1"])
            try b.wire.post(b.request(wait: 20_000), version: 2)
            // The session's epoch has risen with the request that waited.
            var second = a.request()
            second.shareSessionEpoch = 2
            _ = try a.wire.call(second, version: 2)
            #expect(try a.acknowledge(topic, [(1, 1, [2])], epoch: 3).errorCode == 0)
            #expect(try b.values(b.wire.read(ShareFetchResponse.self, version: 2)) == ["1:v1:2"])
        }
    }

    @Test func `sessions have an order, a limit and an end`() async throws {
        try await withMembers(
            ["a", "b"], settings: ["group.share.max.share.sessions": "1", "group.share.max.size": "10"]
        ) { _, client, topic, members in
            let (a, b) = (members[0], members[1])
            try produce(client, ["v0", "v1"])
            func code(_ request: ShareFetchRequest, _ member: ShareClient) throws -> ErrorCode {
                ErrorCode(rawValue: try member.wire.call(request, version: 2).errorCode)
            }
            var request = a.request()
            request.shareSessionEpoch = 5
            #expect(try code(request, a) == .shareSessionNotFound)
            request.shareSessionEpoch = -1
            #expect(try code(request, a) == .shareSessionNotFound)
            #expect(
                try a.acknowledge(topic, [(0, 0, [1])], epoch: 0).errorCode
                    == ErrorCode.invalidShareSessionEpoch.rawValue)
            #expect(
                try a.acknowledge(topic, [(0, 0, [1])], epoch: 1).errorCode
                    == ErrorCode.shareSessionNotFound.rawValue)
            #expect(try a.fetch() == ["0:v0:1", "1:v1:1"])
            #expect(try code(b.request(), b) == .shareSessionLimitReached)
            request.shareSessionEpoch = 7
            #expect(try code(request, a) == .invalidShareSessionEpoch)
            // The last word frees what is not acknowledged.
            #expect(try a.acknowledge(topic, [(0, 0, [1])], epoch: -1).errorCode == 0)
            #expect(try b.fetch() == ["1:v1:2"])
            request = b.request()
            request.memberID = ""
            #expect(try code(request, b) == .invalidRequest)
            request.memberID = "b"
            request.groupID = nil
            #expect(try code(request, b) == .invalidRequest)
            request = b.request()
            request.isRenewAck = true
            #expect(try code(request, b) == .invalidRequest)
        }
    }

    @Test func `a connection that ends frees what its member holds`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let topic = try client.createTopic("t")
            #expect(try configure(client, "g", ["share.auto.offset.reset": "earliest"]) == 0)
            try produce(client, ["v0", "v1"])
            let b = try ShareClient(broker, "g", "b")
            do {
                let a = try ShareClient(broker, "g", "a")
                try a.join(["t"])
                try b.join(["t"])
                #expect(try a.fetch() == ["0:v0:1", "1:v1:1"])
                #expect(try b.fetch().isEmpty)
            }
            #expect(try b.fetch(wait: 20_000) == ["0:v0:2", "1:v1:2"])
            #expect(try b.code(topic, [(0, 1, [1])]) == .none)
        }
    }

    @Test func `locks end, are renewed, and deliveries are counted up to the limit`() async throws {
        try await withMembers(
            ["a", "b"], settings: Self.quick, config: ["share.delivery.count.limit": "2"]
        ) { _, client, topic, members in
            let (a, b) = (members[0], members[1])
            try produce(client, ["v0", "v1"])
            #expect(try a.fetch() == ["0:v0:1", "1:v1:1"])
            #expect(try b.fetch().isEmpty)
            #expect(try b.fetch(wait: 20_000) == ["0:v0:2", "1:v1:2"])
            #expect(try a.code(topic, [(0, 1, [1])]) == .invalidRecordState)
            #expect(try b.code(topic, [(1, 1, [4])]) == .invalidRequest)
            #expect(try b.code(topic, [(1, 1, [4])], renews: true) == .none)
            #expect(try b.code(topic, [(0, 0, [2])]) == .none)
            // Given up after the second delivery; the other one too, when its lock ends.
            try produce(client, ["v2"])
            #expect(try a.fetch(wait: 20_000) == ["2:v2:1"])
            #expect(try a.code(topic, [(2, 2, [1])]) == .none)
            #expect(try a.fetch(wait: 3_000).isEmpty)
            #expect(try summary(client, "g")[0].partitions[0].startOffset == 3)
        }
    }

    @Test func `what a fetch says of an earlier delivery is not taken for the one it gets`() async throws {
        try await withMembers(["a", "b"], settings: Self.quick) { _, client, topic, members in
            let (a, b) = (members[0], members[1])
            try produce(client, ["v0"])
            #expect(try a.fetch() == ["0:v0:1"])
            // Its lock ends; the other one gives the record back.
            #expect(try b.fetch(wait: 20_000) == ["0:v0:2"])
            #expect(try b.code(topic, [(0, 0, [2])]) == .none)
            var request = a.request()
            var entry = ShareFetchRequest.FetchTopic()
            entry.topicID = topic
            var partition = ShareFetchRequest.FetchPartition()
            partition.partitionIndex = 0
            var late = ShareFetchRequest.AcknowledgementBatch()
            late.firstOffset = 0
            late.lastOffset = 0
            late.acknowledgeTypes = [1]
            partition.acknowledgementBatches = [late]
            entry.partitions = [partition]
            request.topics = [entry]
            let response = try a.call(request)
            let answer = response.responses.first?.partitions.first
            #expect(ErrorCode(rawValue: answer?.acknowledgeErrorCode ?? 0) == .invalidRecordState)
            #expect(try a.values(response) == ["0:v0:3"])
            #expect(try a.code(topic, [(0, 0, [1])]) == .none)
        }
    }

    @Test func `groups that read committed see no open and no aborted transaction`() async throws {
        try await withMembers(["a"], config: ["share.isolation.level": "read_committed"]) {
            _, client, topic, members in
            let a = members[0]
            try produce(client, ["v0"])
            var find = FindCoordinatorRequest()
            find.keyType = 1
            find.coordinatorKeys = ["tx"]
            #expect(try client.call(find).coordinators.first?.errorCode == 0)
            var producer = InitProducerIdRequest(transactionalID: "tx")
            producer.transactionTimeoutMs = 60_000
            for (index, commits) in [false, true].enumerated() {
                // While the markers of the transaction before are on their way, the coordinator says so.
                var ids = try client.call(producer, version: 4)
                for _ in 0..<20_000 where ids.errorCode == ErrorCode.concurrentTransactions.rawValue {
                    ids = try client.call(producer, version: 4)
                }
                #expect(ids.errorCode == 0)
                var add = AddPartitionsToTxnRequest()
                add.v3AndBelowTransactionalID = "tx"
                add.v3AndBelowProducerID = ids.producerID
                add.v3AndBelowProducerEpoch = ids.producerEpoch
                var part = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic()
                part.name = "t"
                part.partitions = [0]
                add.v3AndBelowTopics = [part]
                #expect(
                    try client.call(add, version: 3).resultsByTopicV3AndBelow.first?.resultsByPartition.first?
                        .partitionErrorCode == 0)
                var builder = RecordBatchBuilder()
                try builder.append(
                    key: nil, value: ByteBuffer(string: "tx\(index)"), timestamp: 1_700_000_000_000)
                let batch = try builder.build(
                    .init(
                        producerID: ids.producerID, producerEpoch: ids.producerEpoch, baseSequence: 0,
                        isTransactional: true))
                var request = ProduceRequest()
                request.transactionalID = "tx"
                request.acks = -1
                request.timeoutMs = 10_000
                var data = ProduceRequest.PartitionProduceData()
                data.records = batch
                var topicData = ProduceRequest.TopicProduceData()
                topicData.name = "t"
                topicData.partitionData = [data]
                request.topicData = [topicData]
                #expect(
                    try client.call(request, version: 11).responses.first?.partitionResponses.first?.errorCode
                        == 0)
                if index == 0 { #expect(try a.fetch() == ["0:v0:1"]) }
                #expect(try a.fetch().isEmpty)
                var end = EndTxnRequest()
                end.transactionalID = "tx"
                end.producerID = ids.producerID
                end.producerEpoch = ids.producerEpoch
                end.committed = commits
                #expect(try client.call(end, version: 4).errorCode == 0)
            }
            // Offset 1 was aborted, 2 is its marker, 4 the marker of the other.
            #expect(try a.fetch(wait: 20_000) == ["3:tx1:1"])
            #expect(try a.code(topic, [(0, 0, [1]), (3, 3, [1])]) == .none)
        }
    }

    @Test func `no more records than asked for in the strict mode, and no more in flight than the limit`()
        async throws
    {
        try await withMembers(["a"], config: ["share.partition.max.record.locks": "100"]) {
            _, client, topic, members in
            let a = members[0]
            try produce(client, (0..<150).map { "v\($0)" })
            #expect(try a.fetch(max: 3, strict: true).map { $0.prefix(1) } == ["0", "1", "2"])
            #expect(try a.fetch().count == 97)
            #expect(try a.fetch().isEmpty)
            #expect(try a.code(topic, [(0, 49, [1])]) == .none)
            #expect(try a.fetch().count == 50)
        }
    }

    @Test func `state outlives a restart: what was held is delivered again, what is done with is not`()
        async throws
    {
        try await withTemporaryFolder { folder in
            var topic = UniversalID.zero
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                topic = try client.createTopic("t")
                #expect(try configure(client, "g", ["share.auto.offset.reset": "earliest"]) == 0)
                try produce(client, ["v0", "v1", "v2", "v3"])
                let a = try ShareClient(broker, "g", "a")
                try a.join(["t"])
                #expect(try a.fetch().count == 4)
                #expect(try a.code(topic, [(0, 0, [1]), (2, 2, [1]), (3, 3, [2])]) == .none)
            }
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                let found = try summary(client, "g")
                #expect(found[0].partitions[0].startOffset == 1 && found[0].partitions[0].lag == 2)
                let a = try ShareClient(broker, "g", "a")
                try a.join(["t"])
                // Whether the end of the session could still be written depends on what the broker closed first.
                let again = try a.fetch()
                #expect(again.map { $0.prefix(2) } == ["1:", "3:"] && again.last == "3:v3:2")
                var request = DescribeConfigsRequest()
                var resource = DescribeConfigsRequest.DescribeConfigsResource()
                resource.resourceType = 32
                resource.resourceName = "g"
                resource.configurationKeys = nil
                request.resources = [resource]
                let configs = try client.call(request).results[0].configs
                let reset = configs.first { $0.name == "share.auto.offset.reset" }
                #expect(reset?.value == "earliest" && reset?.configSource == 8)
                #expect(configs.first { $0.name == "share.session.timeout.ms" }?.value == "45000")
                var list = ListConfigResourcesRequest()
                list.resourceTypes = [32]
                #expect(try client.call(list, version: 1).configResources.map(\.resourceName) == ["g"])
            }
        }
    }

    @Test func `a group that begins at the latest record keeps that place over a restart`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                _ = try client.createTopic("t")
                try produce(client, ["old"])
                let a = try ShareClient(broker, "g", "a")
                try a.join(["t"])
                #expect(try a.fetch().isEmpty)
                try produce(client, ["new"])
            }
            try await withBroker(folder: folder) { broker in
                let a = try ShareClient(broker, "g", "a")
                try a.join(["t"])
                #expect(try a.fetch() == ["1:new:1"])
            }
        }
    }

    @Test func `offsets are altered and deleted, groups listed, described and deleted`() async throws {
        try await withMembers(["a"]) { _, client, topic, members in
            let a = members[0]
            try produce(client, ["v0", "v1", "v2"])
            #expect(try a.fetch().count == 3)
            #expect(try a.code(topic, [(0, 2, [1])]) == .none)
            func alter(_ offset: Int64) throws -> AlterShareGroupOffsetsResponse {
                var partition = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestPartition()
                partition.startOffset = offset
                var part = AlterShareGroupOffsetsRequest.AlterShareGroupOffsetsRequestTopic()
                part.topicName = "t"
                part.partitions = [partition]
                var request = AlterShareGroupOffsetsRequest()
                request.groupID = "g"
                request.topics = [part]
                return try client.call(request)
            }
            func delete() throws -> Int16? {
                var request = DeleteGroupsRequest()
                request.groupsNames = ["g"]
                return try client.call(request).results.first?.errorCode
            }
            #expect(try alter(1).errorCode == ErrorCode.nonEmptyGroup.rawValue)
            #expect(try delete() == ErrorCode.nonEmptyGroup.rawValue)
            var describe = ShareGroupDescribeRequest()
            describe.groupIDs = ["g", "none"]
            describe.includeAuthorizedOperations = true
            let described = try client.call(describe).groups
            #expect(described[0].groupState == "Stable" && described[0].authorizedOperations == 328)
            #expect(described[0].members.map(\.memberID) == ["a"])
            #expect(described[1].errorCode == ErrorCode.groupIDNotFound.rawValue)
            var list = ListGroupsRequest()
            list.typesFilter = ["share"]
            #expect(try client.call(list).groups.map(\.groupID) == ["g"])

            #expect(try a.beat(epoch: -1).errorCode == 0)
            let altered = try alter(1)
            #expect(altered.errorCode == 0 && altered.responses[0].partitions[0].errorCode == 0)
            #expect(try summary(client, "g")[0].partitions[0].startOffset == 1)
            // The leader of before has lost its place.
            try a.beat(["t"], epoch: 0)
            #expect(try a.fetch() == ["1:v1:1", "2:v2:1"])
            #expect(try a.beat(epoch: -1).errorCode == 0)
            var part = DeleteShareGroupOffsetsRequest.DeleteShareGroupOffsetsRequestTopic()
            part.topicName = "t"
            var offsets = DeleteShareGroupOffsetsRequest()
            offsets.groupID = "g"
            offsets.topics = [part]
            #expect(try client.call(offsets).responses.map(\.errorCode) == [0])
            #expect(try summary(client, "g").isEmpty)
            #expect(
                try client.call(offsets).responses.map(\.errorCode) == [
                    ErrorCode.unknownTopicOrPartition.rawValue
                ])
            #expect(try delete() == 0)
            #expect(try client.call(list).groups.isEmpty)
        }
    }

    @Test func `a topic that is deleted takes its share partitions along`() async throws {
        try await withMembers(["a"]) { _, client, topic, members in
            try produce(client, ["v0"])
            #expect(try members[0].fetch().count == 1)
            var request = DeleteTopicsRequest()
            var entry = DeleteTopicsRequest.DeleteTopicState()
            entry.name = "t"
            request.topics = [entry]
            request.timeoutMs = 10_000
            #expect(try client.call(request).responses.first?.errorCode == 0)
            let answer = try members[0].call(members[0].request())
            #expect(answer.responses[0].partitions[0].errorCode == ErrorCode.unknownTopicID.rawValue)
            #expect(try members[0].code(topic, [(0, 0, [1])]) == .unknownTopicID)
            #expect(try summary(client, "g").isEmpty)
            _ = try client.createTopic("t")
            #expect(try members[0].beat(["t"]).errorCode == 0)
        }
    }

    @Test func `state of share partitions is kept for whoever asks, with its epochs`() async throws {
        try await withMembers(["a"]) { _, client, topic, members in
            #expect(try members[0].fetch().isEmpty)
            var find = FindCoordinatorRequest()
            find.keyType = 2
            find.coordinatorKeys = ["g:\(topic):0", "nonsense"]
            let found = try client.call(find).coordinators
            #expect(found.map(\.errorCode) == [0, ErrorCode.invalidRequest.rawValue])
            var part = ReadShareGroupStateRequest.PartitionData()
            part.leaderEpoch = 100
            var data = ReadShareGroupStateRequest.ReadStateData()
            data.topicID = topic
            data.partitions = [part]
            var read = ReadShareGroupStateRequest()
            read.groupID = "g"
            read.topics = [data]
            let state = try client.call(read).results[0].partitions[0]
            #expect(state.errorCode == 0 && state.startOffset == 0)
            // Another leader was there: this one is fenced, and says so once.
            try produce(client, ["v0"])
            #expect(try members[0].fetch() == ["0:v0:1"])
            #expect(try members[0].code(topic, [(0, 0, [1])]) == .notLeaderOrFollower)
            var unknown = read
            unknown.groupID = "none"
            #expect(
                try client.call(unknown).results[0].partitions[0].errorCode
                    == ErrorCode.invalidRequest.rawValue)
            var summaryPart = ReadShareGroupStateSummaryRequest.PartitionData()
            summaryPart.leaderEpoch = 100
            var summaryData = ReadShareGroupStateSummaryRequest.ReadStateSummaryData()
            summaryData.topicID = topic
            summaryData.partitions = [summaryPart]
            var summaryRequest = ReadShareGroupStateSummaryRequest()
            summaryRequest.groupID = "g"
            summaryRequest.topics = [summaryData]
            let summed = try client.call(summaryRequest).results[0].partitions[0]
            #expect(summed.errorCode == 0 && summed.leaderEpoch == 100)
        }
    }

    @Test func `configurations of groups are checked`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            let invalid = ErrorCode.invalidConfig.rawValue
            for (name, value, code) in [
                ("share.auto.offset.reset", "by_duration:PT1H", 0),
                ("share.auto.offset.reset", "never", invalid),
                ("share.isolation.level", "read_committed", 0), ("share.isolation.level", "dirty", invalid),
                ("share.delivery.count.limit", "10", 0), ("share.delivery.count.limit", "11", invalid),
                ("share.session.timeout.ms", "60000", 0), ("share.session.timeout.ms", "6000", invalid),
                ("share.record.lock.duration.ms", "14000", invalid),
                ("share.partition.max.record.locks", "99", invalid),
                ("share.heartbeat.interval.ms", "10000", 0),
                ("share.renew.acknowledge.enable", "maybe", invalid),
                ("consumer.session.timeout.ms", "50000", invalid), ("share.unknown", "1", invalid),
            ] as [(String, String, Int16)] {
                #expect(try configure(client, "g", [name: value]) == code, "\(name)=\(value)")
            }
            #expect(try configure(client, "", ["share.isolation.level": "read_committed"]) != 0)
            #expect(try configure(client, "g", ["share.isolation.level": nil]) == 0)
        }
    }

    @Test func `share.version is finalized on a new cluster`() async throws {
        try await withBroker { broker in
            let client = try WireClient(port: broker.address.port)
            var request = ApiVersionsRequest()
            request.clientSoftwareName = "test"
            request.clientSoftwareVersion = "1"
            let response = try client.call(request, version: 4)
            #expect(response.finalizedFeatures.first { $0.name == "share.version" }?.maxVersionLevel == 1)
            #expect(response.apiKeys.contains { $0.apiKey == 78 && $0.minVersion == 1 && $0.maxVersion == 2 })
        }
    }
}
