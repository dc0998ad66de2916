import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

/// How often a client comes again while the transaction before is being finished, which takes a few flushes of a disk
/// that may be busy. An answer takes some hundred microseconds.
private let transactionAttempts = 20_000

/// A transactional producer on the wire, of either protocol.
private final class TransactionalProducer {
    let client: WireClient
    let id: String
    /// Partitions are added by the client and the epoch stays (what librdkafka and Sarama do).
    let isFirst: Bool
    var producerID: Int64 = -1
    var epoch: Int16 = -1
    var sequences: [String: Int32] = [:]

    init(_ client: WireClient, _ id: String, isFirst: Bool = false) {
        self.client = client
        self.id = id
        self.isFirst = isFirst
    }

    static func findCoordinator(_ client: WireClient, _ id: String, type: Int8 = 1) throws {
        var request = FindCoordinatorRequest()
        request.keyType = type
        request.coordinatorKeys = [id]
        let answer = try client.call(request)
        #expect(answer.coordinators.map(\.errorCode) == [0])
    }

    @discardableResult
    func initialize(
        timeout: Int32 = 60_000, keepsIdentity: Bool = false, tries: Int = transactionAttempts
    ) throws -> ErrorCode {
        var request = InitProducerIdRequest(transactionalID: id)
        request.transactionTimeoutMs = timeout
        if keepsIdentity {
            request.producerID = producerID
            request.producerEpoch = epoch
        }
        for _ in 0..<tries {
            let answer = try client.call(request, version: 5)
            if answer.errorCode == ErrorCode.concurrentTransactions.rawValue { continue }
            if answer.errorCode == 0 {
                producerID = answer.producerID
                epoch = answer.producerEpoch
                sequences = [:]
            }
            return ErrorCode(rawValue: answer.errorCode)
        }
        return .concurrentTransactions
    }

    func add(_ topic: String, _ partition: Int32 = 0, version: Int16 = 3) throws -> ErrorCode {
        var request = AddPartitionsToTxnRequest()
        request.v3AndBelowTransactionalID = id
        request.v3AndBelowProducerID = producerID
        request.v3AndBelowProducerEpoch = epoch
        var entry = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic()
        entry.name = topic
        entry.partitions = [partition]
        request.v3AndBelowTopics = [entry]
        for _ in 0..<transactionAttempts {
            let answer = try client.call(request, version: version)
            let code = answer.resultsByTopicV3AndBelow.first?.resultsByPartition.first?.partitionErrorCode ?? -1
            if code != ErrorCode.concurrentTransactions.rawValue { return ErrorCode(rawValue: code) }
        }
        return .concurrentTransactions
    }

    /// Sends one batch; with `identity` in the name of an earlier transaction.
    func produce(
        _ values: [String], to topic: String, _ partition: Int32 = 0, identity: (Int64, Int16, Int32)? = nil,
        version: Int16? = nil
    ) throws -> ErrorCode {
        let place = "\(topic)-\(partition)"
        let sequence = identity?.2 ?? sequences[place] ?? 0
        var builder = RecordBatchBuilder()
        for value in values {
            try builder.append(
                key: ByteBuffer(string: "k"), value: ByteBuffer(string: value), timestamp: 1_700_000_000_000)
        }
        let batch = try builder.build(
            RecordBatchBuilder.Options(
                producerID: identity?.0 ?? producerID, producerEpoch: identity?.1 ?? epoch, baseSequence: sequence,
                isTransactional: true))
        var data = ProduceRequest.PartitionProduceData()
        data.index = partition
        data.records = batch
        var topicData = ProduceRequest.TopicProduceData()
        topicData.name = topic
        topicData.partitionData = [data]
        var request = ProduceRequest()
        request.transactionalID = id
        request.acks = -1
        request.timeoutMs = 10_000
        request.topicData = [topicData]
        var code = ErrorCode.concurrentTransactions
        // While the markers of the transaction before are on their way the client comes again.
        for _ in 0..<transactionAttempts where code == .concurrentTransactions {
            let answer = try client.call(request, version: version ?? (isFirst ? 9 : 12))
            code = ErrorCode(rawValue: answer.responses.first?.partitionResponses.first?.errorCode ?? -1)
        }
        if code == .none, identity == nil { sequences[place] = sequence + Int32(values.count) }
        return code
    }

    func end(commits: Bool, identity: (Int64, Int16)? = nil) throws -> ErrorCode {
        var request = EndTxnRequest()
        request.transactionalID = id
        request.producerID = identity?.0 ?? producerID
        request.producerEpoch = identity?.1 ?? epoch
        request.committed = commits
        for _ in 0..<transactionAttempts {
            let answer = try client.call(request, version: isFirst ? 3 : 5)
            if answer.errorCode == ErrorCode.concurrentTransactions.rawValue { continue }
            if answer.errorCode == 0, !isFirst, identity == nil {
                producerID = answer.producerID
                epoch = answer.producerEpoch
                sequences = [:]
            }
            return ErrorCode(rawValue: answer.errorCode)
        }
        return .concurrentTransactions
    }
}

extension WireClient {
    /// Values a consumer is shown, worked out as clients do.
    fileprivate func read(_ topic: String, _ partition: Int32 = 0, committed: Bool) throws -> [String] {
        var request = fetchRequest(topic, from: 0, partition: partition)
        request.isolationLevel = committed ? 1 : 0
        let response = try call(request, version: 12)
        guard let part = response.responses.first?.partitions.first, var records = part.records else { return [] }
        if committed { #expect(part.abortedTransactions != nil) }
        var pending = (part.abortedTransactions ?? []).sorted { $0.firstOffset < $1.firstOffset }[...]
        var hidden: Set<Int64> = []
        var values: [String] = []
        while records.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: records)
            guard let batch = records.readSlice(length: header.totalByteCount) else { throw Failure.closed }
            while let first = pending.first, first.firstOffset <= header.lastOffset {
                hidden.insert(first.producerID)
                pending.removeFirst()
            }
            if header.isControl {
                if try EndTransactionMarker(batch: batch)?.commits == false { hidden.remove(header.producerID) }
                continue
            }
            if header.isTransactional, hidden.contains(header.producerID) { continue }
            var iterator = try RecordIterator(batch)
            while let record = try iterator.next() { values.append(record.value.map { String(buffer: $0) } ?? "") }
        }
        return values
    }

    /// Reads until the markers, which follow the answer to EndTxn, are there.
    fileprivate func readCommitted(_ topic: String, _ partition: Int32 = 0, expecting expected: [String]) throws -> [String] {
        var values: [String] = []
        for _ in 0..<500 {
            values = try read(topic, partition, committed: true)
            if values == expected { break }
        }
        return values
    }

    fileprivate func latest(_ topic: String, committed: Bool) throws -> Int64 {
        var request = ListOffsetsRequest()
        request.replicaID = -1
        request.isolationLevel = committed ? 1 : 0
        var part = ListOffsetsRequest.ListOffsetsPartition()
        part.currentLeaderEpoch = -1
        part.timestamp = -1
        var entry = ListOffsetsRequest.ListOffsetsTopic()
        entry.name = topic
        entry.partitions = [part]
        request.topics = [entry]
        return try call(request, version: 7).topics.first?.partitions.first?.offset ?? -1
    }
}

@Suite(.timeLimit(.minutes(2))) struct `Transactions on the wire` {
    private static let settings = [
        "offsets.topic.num.partitions": "4", "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
    ]

    @Test(arguments: [true, false])
    func `committed records are shown, aborted and open ones are not`(isFirst: Bool) async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 2)
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x", isFirst: isFirst)
            #expect(try producer.initialize() == .none)
            var expected: [String] = []
            for round in 0..<6 {
                for partition in 0..<2 as Range<Int32> {
                    if isFirst { #expect(try producer.add("t", partition) == .none) }
                    #expect(try producer.produce(["\(round)a", "\(round)b"], to: "t", partition) == .none)
                }
                #expect(try client.read("t", committed: true) == expected, "an open transaction is not shown")
                let commits = round % 2 == 0
                #expect(try producer.end(commits: commits) == .none)
                if commits { expected += ["\(round)a", "\(round)b"] }
                for partition in 0..<2 as Range<Int32> {
                    #expect(try client.readCommitted("t", partition, expecting: expected) == expected)
                }
            }
            #expect(try client.read("t", committed: false).count == 12)
            if isFirst {
                #expect(producer.epoch == 0)
            } else {
                #expect(producer.epoch == 6, "the epoch rises with every end")
            }
        }
    }

    @Test func `the last stable offset stays before the first open record`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x")
            try producer.initialize()
            #expect(try client.produce(try makeBatch(["plain"]), topic: "t").errorCode == 0)
            #expect(try producer.produce(["open"], to: "t") == .none)
            #expect(try client.produce(try makeBatch(["behind"]), topic: "t").errorCode == 0)
            #expect(try client.latest("t", committed: true) == 1)
            #expect(try client.latest("t", committed: false) == 3)
            let part = try client.fetch("t", from: 0)
            #expect(part.lastStableOffset == 1 && part.highWatermark == 3)
            #expect(try client.read("t", committed: true) == ["plain"])
            #expect(try producer.end(commits: true) == .none)
            let all = ["plain", "open", "behind"]
            #expect(try client.readCommitted("t", expecting: all) == all)
            #expect(try client.latest("t", committed: true) == 4)
        }
    }

    @Test func `late requests of an earlier transaction never touch a later one`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 2)
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x")
            try producer.initialize()
            let first = (producer.producerID, producer.epoch)
            #expect(try producer.produce(["one"], to: "t") == .none)
            #expect(try producer.end(commits: true) == .none)
            #expect(try producer.produce(["two"], to: "t") == .none)
            // EndTxn, AddPartitionsToTxn and Produce of the first transaction arrive now.
            #expect(try producer.end(commits: true, identity: first) == .producerFenced)
            #expect(try producer.end(commits: false, identity: first) == .producerFenced)
            let late = TransactionalProducer(client, "x")
            (late.producerID, late.epoch) = first
            #expect(try late.add("t", 1) == .producerFenced)
            #expect(try late.produce(["late"], to: "t", identity: (first.0, first.1, 1)) == .invalidProducerEpoch)
            #expect(try late.produce(["late"], to: "t", 1, identity: (first.0, first.1, 0)) == .invalidProducerEpoch)
            #expect(try producer.end(commits: false) == .none)
            #expect(try late.produce(["late"], to: "t", 1, identity: (first.0, first.1, 0)) == .invalidProducerEpoch)
            #expect(try client.readCommitted("t", expecting: ["one"]) == ["one"])
            #expect(try client.read("t", 1, committed: false).isEmpty)
        }
    }

    @Test func `a write of the first protocol without AddPartitionsToTxn is refused and leaves nothing`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x", isFirst: true)
            try producer.initialize()
            #expect(try producer.produce(["stray"], to: "t") == .invalidTxnState)
            #expect(try producer.produce(["stray"], to: "t", version: 11) == .transactionAbortable)
            #expect(try client.latest("t", committed: false) == 0)
            // Nor may a later one pass for the first.
            #expect(try producer.add("t") == .none)
            let identity = (producer.producerID, producer.epoch, Int32(1))
            #expect(try producer.produce(["gap"], to: "t", identity: identity) == .outOfOrderSequenceNumber)
            #expect(try producer.produce(["fine"], to: "t") == .none)
            #expect(try producer.end(commits: true) == .none)
            #expect(try client.readCommitted("t", expecting: ["fine"]) == ["fine"])
        }
    }

    @Test func `a second producer fences the first and aborts its transaction`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            try TransactionalProducer.findCoordinator(client, "x")
            for isFirst in [true, false] {
                let old = TransactionalProducer(client, "x", isFirst: isFirst)
                try old.initialize()
                if isFirst { #expect(try old.add("t") == .none) }
                #expect(try old.produce(["old"], to: "t") == .none)
                let new = TransactionalProducer(client, "x", isFirst: isFirst)
                #expect(try new.initialize() == .none)
                #expect(new.producerID == old.producerID && new.epoch > old.epoch)
                #expect(try old.produce(["zombie"], to: "t") == .invalidProducerEpoch)
                #expect(try old.end(commits: true) == .producerFenced)
                #expect(try old.initialize(keepsIdentity: true) == .producerFenced)
                #expect(try client.readCommitted("t", expecting: []) == [])
                if isFirst { #expect(try new.add("t") == .none) }
            }
        }
    }

    @Test func `a timeout above the cap, a missing id and unknown producers are refused by their codes`() async throws {
        try await withBroker(Self.settings.merging(["transaction.max.timeout.ms": "5000"]) { $1 }) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            // Before anybody has looked for the coordinator there is none.
            let early = TransactionalProducer(client, "x")
            #expect(try early.initialize() == .coordinatorNotAvailable)
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x")
            #expect(try producer.initialize(timeout: 5_001) == .invalidTransactionTimeout)
            (producer.producerID, producer.epoch) = (77, 0)
            #expect(try producer.end(commits: true) == .invalidProducerIDMapping)
            #expect(try producer.add("t") == .invalidProducerIDMapping)
            #expect(try producer.produce(["x"], to: "t") == .invalidProducerIDMapping)
            #expect(try producer.initialize(timeout: 5_000) == .none)
            #expect(try producer.add("nothing") == .unknownTopicOrPartition)
            #expect(try producer.add("__consumer_offsets") == .unknownTopicOrPartition)
            #expect(try producer.add("__transaction_state") == .topicAuthorizationFailed)
            let batch = try RecordBatchBuilder.oneTransactional(producer.producerID, producer.epoch)
            #expect(
                try client.produce(batch, topic: "t").errorCode
                    == ErrorCode.transactionalIDAuthorizationFailed.rawValue)
        }
    }

    @Test func `a transaction left open is aborted after its timeout, also over a restart`() async throws {
        try await withTemporaryFolder { folder in
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t")
                try TransactionalProducer.findCoordinator(client, "x")
                let producer = TransactionalProducer(client, "x")
                try producer.initialize(timeout: 300)
                #expect(try producer.produce(["left"], to: "t") == .none)
            }
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                // Nobody asks the coordinator anything: its clock runs all the same.
                for _ in 0..<5_000 where try client.latest("t", committed: true) < 2 { continue }
                #expect(try client.latest("t", committed: true) == 2)
                #expect(try client.read("t", committed: true) == [])
            }
        }
    }

    @Test func `decisions and open transactions survive a restart`() async throws {
        try await withTemporaryFolder { folder in
            var identity: (Int64, Int16) = (-1, -1)
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                try client.createTopic("t")
                try TransactionalProducer.findCoordinator(client, "x")
                let producer = TransactionalProducer(client, "x")
                try producer.initialize()
                #expect(try producer.produce(["one"], to: "t") == .none)
                #expect(try producer.end(commits: true) == .none)
                #expect(try producer.produce(["two"], to: "t") == .none)
                #expect(try producer.end(commits: false) == .none)
                #expect(try producer.produce(["three"], to: "t") == .none)
                identity = (producer.producerID, producer.epoch)
            }
            try await withBroker(Self.settings, folder: folder) { broker in
                let client = try WireClient(port: broker.address.port)
                #expect(try client.readCommitted("t", expecting: ["one"]) == ["one"])
                let producer = TransactionalProducer(client, "x")
                (producer.producerID, producer.epoch) = identity
                #expect(try producer.end(commits: true) == .none)
                let all = ["one", "three"]
                #expect(try client.readCommitted("t", expecting: all) == all)
            }
        }
    }

    @Test(arguments: [true, false])
    func `offsets in a transaction count when it commits`(isFirst: Bool) async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t")
            try TransactionalProducer.findCoordinator(client, "x")
            try TransactionalProducer.findCoordinator(client, "g", type: 0)
            let producer = TransactionalProducer(client, "x", isFirst: isFirst)
            try producer.initialize()

            func commit(_ offset: Int64) throws -> ErrorCode {
                var request = TxnOffsetCommitRequest()
                request.transactionalID = "x"
                request.groupID = "g"
                request.producerID = producer.producerID
                request.producerEpoch = producer.epoch
                var partition = TxnOffsetCommitRequest.TxnOffsetCommitRequestPartition()
                partition.committedOffset = offset
                partition.committedMetadata = "note"
                var topic = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic()
                topic.name = "t"
                topic.partitions = [partition]
                request.topics = [topic]
                for _ in 0..<transactionAttempts {
                    let answer = try client.call(request, version: isFirst ? 3 : 5)
                    let code = ErrorCode(rawValue: answer.topics.first?.partitions.first?.errorCode ?? -1)
                    if code != .concurrentTransactions, code != .coordinatorLoadInProgress { return code }
                }
                return .concurrentTransactions
            }

            func fetched(stable: Bool) throws -> (Int64, ErrorCode) {
                var topic = OffsetFetchRequest.OffsetFetchRequestTopics()
                topic.name = "t"
                topic.partitionIndexes = [0]
                var group = OffsetFetchRequest.OffsetFetchRequestGroup()
                group.groupID = "g"
                group.topics = [topic]
                var request = OffsetFetchRequest()
                request.groups = [group]
                request.requireStable = stable
                let part = try client.call(request, version: 9).groups.first?.topics.first?.partitions.first
                return (part?.committedOffset ?? -2, ErrorCode(rawValue: part?.errorCode ?? -1))
            }

            func addOffsets() throws -> ErrorCode {
                var request = AddOffsetsToTxnRequest()
                request.transactionalID = "x"
                request.producerID = producer.producerID
                request.producerEpoch = producer.epoch
                request.groupID = "g"
                for _ in 0..<transactionAttempts {
                    let code = ErrorCode(rawValue: try client.call(request, version: 3).errorCode)
                    if code != .concurrentTransactions { return code }
                }
                return .concurrentTransactions
            }

            if isFirst {
                #expect(try commit(5) == .invalidTxnState, "not added")
                #expect(try addOffsets() == .none)
            }
            #expect(try commit(5) == .none)
            #expect(try fetched(stable: false) == (-1, .none))
            #expect(try fetched(stable: true) == (-1, .unstableOffsetCommit))
            #expect(try producer.end(commits: true) == .none)
            for _ in 0..<500 where try fetched(stable: true).1 != .none { continue }
            #expect(try fetched(stable: true) == (5, .none))

            if isFirst { #expect(try addOffsets() == .none) }
            #expect(try commit(9) == .none)
            #expect(try producer.end(commits: false) == .none)
            for _ in 0..<500 where try fetched(stable: true).1 != .none { continue }
            #expect(try fetched(stable: true) == (5, .none))

            // A zombie's offsets cost the group's coordinator nothing.
            let successor = TransactionalProducer(client, "x", isFirst: isFirst)
            try successor.initialize()
            #expect(try commit(11) == .invalidProducerEpoch)
            #expect(try fetched(stable: true) == (5, .none))
        }
    }

    @Test func `producers and transactions are described`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 2)
            try TransactionalProducer.findCoordinator(client, "x")
            let producer = TransactionalProducer(client, "x")
            try producer.initialize(timeout: 30_000)
            #expect(try producer.produce(["a", "b"], to: "t", 1) == .none)

            var describe = DescribeTransactionsRequest()
            describe.transactionalIDs = ["x", "nobody"]
            let states = try client.call(describe).transactionStates
            #expect(states.map(\.errorCode) == [0, ErrorCode.transactionalIDNotFound.rawValue])
            #expect(states[0].transactionState == "Ongoing" && states[0].transactionTimeoutMs == 30_000)
            #expect(states[0].producerID == producer.producerID && states[0].topics.map(\.partitions) == [[1]])

            var list = ListTransactionsRequest()
            list.stateFilters = ["Ongoing", "Lost"]
            let listed = try client.call(list, version: 1)
            #expect(listed.transactionStates.map(\.transactionalID) == ["x"])
            #expect(listed.unknownStateFilters == ["Lost"])

            var producers = DescribeProducersRequest()
            var topic = DescribeProducersRequest.TopicRequest()
            topic.name = "t"
            topic.partitionIndexes = [1, 7]
            producers.topics = [topic]
            let partitions = try client.call(producers).topics.first?.partitions ?? []
            #expect(partitions.map(\.errorCode) == [0, ErrorCode.unknownTopicOrPartition.rawValue])
            let active = try #require(partitions.first?.activeProducers.first)
            #expect(active.producerID == producer.producerID && active.currentTxnStartOffset == 0)
            #expect(active.lastSequence == 1 && active.producerEpoch == 0)

            // An operator ends what hangs.
            var marker = WriteTxnMarkersRequest.WritableTxnMarker()
            marker.producerID = active.producerID
            marker.producerEpoch = Int16(active.producerEpoch)
            var markerTopic = WriteTxnMarkersRequest.WritableTxnMarkerTopic()
            markerTopic.name = "t"
            markerTopic.partitionIndexes = [1, 5]
            marker.topics = [markerTopic]
            var write = WriteTxnMarkersRequest()
            write.markers = [marker]
            let outcome = try client.call(write, version: 1).markers.first?.topics.first?.partitions.map(\.errorCode)
            #expect(outcome == [0, ErrorCode.unknownTopicOrPartition.rawValue])
            #expect(try client.read("t", 1, committed: true) == [])
        }
    }

    @Test func `brokers verify and add for many transactions at once`() async throws {
        try await withBroker(Self.settings) { broker in
            let client = try WireClient(port: broker.address.port)
            try client.createTopic("t", partitions: 2)
            var request = AddPartitionsToTxnRequest()
            for id in ["x", "y"] {
                try TransactionalProducer.findCoordinator(client, id)
                let producer = TransactionalProducer(client, id)
                try producer.initialize()
                var transaction = AddPartitionsToTxnRequest.AddPartitionsToTxnTransaction()
                transaction.transactionalID = id
                transaction.producerID = producer.producerID
                transaction.producerEpoch = producer.epoch
                var topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic()
                topic.name = "t"
                topic.partitions = [0, 1]
                transaction.topics = [topic]
                transaction.verifyOnly = id == "x"
                request.transactions.append(transaction)
            }
            func codes() throws -> [[Int16]] {
                try client.call(request, version: 5).resultsByTransaction.map {
                    $0.topicResults.flatMap { $0.resultsByPartition.map(\.partitionErrorCode) }
                }
            }
            let abortable = ErrorCode.transactionAbortable.rawValue
            #expect(try codes() == [[abortable, abortable], [0, 0]])
            request.transactions[1].verifyOnly = true
            #expect(try codes() == [[abortable, abortable], [0, 0]])
        }
    }
}

extension RecordBatchBuilder {
    fileprivate static func oneTransactional(_ producerID: Int64, _ epoch: Int16) throws -> ByteBuffer {
        var builder = RecordBatchBuilder()
        try builder.append(key: nil, value: ByteBuffer(string: "v"), timestamp: 1_700_000_000_000)
        return try builder.build(
            Options(producerID: producerID, producerEpoch: epoch, baseSequence: 0, isTransactional: true))
    }
}
