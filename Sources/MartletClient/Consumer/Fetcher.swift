import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore

/// Where a partition starts when it is newly assigned.
enum StartPosition: Hashable, Sendable {
    case position(OffsetSpec)
    /// What the group has committed, else by the reset policy.
    case committed
    /// What the group has committed, else this.
    case committedElse(Offset)

    var isCommitted: Bool {
        switch self {
        case .position: false
        case .committed, .committedElse: true
        }
    }
}

/// The fetching half of a consumer: finds out where to start, long-polls the leaders, verifies and decompresses
/// batches and puts them into the buffer, within its limit. One fetch is on its way per broker.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class Fetcher: @unchecked Sendable {
    /// What the fetcher knows of one partition.
    private final class Partition {
        let topicPartition: TopicPartition
        let cursor: PartitionCursor
        let version: Int
        /// Next offset to fetch; `nil` until the start is known.
        var offset: Offset?
        var start: StartPosition
        var isAsking = false
        /// An error has been reported; nothing more until a seek.
        var isStopped = false
        var notBefore = NIODeadline.uptimeNanoseconds(0)
        var failureCount = 0
        /// Replica named by the leader as nearer (KIP-392).
        var preferred: BrokerID?

        init(
            _ topicPartition: TopicPartition, _ cursor: PartitionCursor, _ version: Int,
            _ start: StartPosition
        ) {
            self.topicPartition = topicPartition
            self.cursor = cursor
            self.version = version
            self.start = start
        }
    }

    private final class Broker {
        var isFetching = false
        var notBefore = NIODeadline.uptimeNanoseconds(0)
        var failureCount = 0
    }

    /// Last Fetch version that names topics (KIP-516).
    private static let lastNameVersion: Int16 = 12
    /// A partition is fetched again while less than this many times `partitionFetchBytes` of it is buffered.
    private static let prefetchDepth = 4
    /// Wait of a fetch that had to leave out partitions because their buffer is full: they may drain at any time.
    private static let crowdedWait = Duration.milliseconds(10)
    /// "Unknown topic" answers in a row before that is reported; news of a new topic needs a moment.
    private static let unknownTopicLimit = 5
    /// Fetch request timeouts beyond the broker's own wait.
    private static let graceTime = Duration.seconds(10)

    let engine: ClientEngine
    private let buffer: FetchBuffer
    private let configuration: ConsumerConfiguration
    private let decompressor = RecordDecompressor()
    private let limits: BatchLimits
    private var partitions: [TopicPartition: Partition] = [:]
    private var brokers: [BrokerID: Broker] = [:]
    private var wakeTimer: Scheduled<Void>?
    private var wakeAt = NIODeadline.distantFuture
    private var isAskingCommitted = false
    private var metadataFailingSince: NIODeadline?
    private var hadMetadata = false

    init(engine: ClientEngine, buffer: FetchBuffer, configuration: ConsumerConfiguration) {
        self.engine = engine
        self.buffer = buffer
        self.configuration = configuration
        var limits = BatchLimits.stored
        limits.maxInflatedBytes = configuration.decompressedBatchByteLimit
        self.limits = limits
    }

    private var loop: any EventLoop { engine.loop }

    // MARK: Assignment

    /// Starts to fetch partitions. They are in the buffer already, each with a cursor.
    func add(_ starts: [TopicPartition: (cursor: PartitionCursor, version: Int, start: StartPosition)]) {
        for (topicPartition, entry) in starts {
            let partition = Partition(topicPartition, entry.cursor, entry.version, entry.start)
            if case .position(.at(let offset)) = entry.start { partition.offset = offset }
            partitions[topicPartition] = partition
        }
        engine.want(Set(starts.keys.map(\.topic)))
        if starts.keys.contains(where: { engine.metadata.topics[$0.topic] == nil }) { refreshMetadata() }
        pump()
    }

    func remove(_ removed: some Sequence<TopicPartition>) {
        for partition in removed { partitions[partition] = nil }
    }

    func removeAll() { partitions.removeAll() }

    // MARK: Pump

    /// There may be something to fetch: an answer came, room was made, metadata changed, a pause is over.
    func pump() {
        loop.preconditionInEventLoop()
        guard !engine.isClosed, !partitions.isEmpty else { return }
        let now = NIODeadline.now()
        var byLeader: [BrokerID: [Partition]] = [:]
        var crowded: Set<BrokerID> = []
        var questions: [BrokerID: [TopicPartition: OffsetSpec]] = [:]
        var committed: [TopicPartition] = []
        var isLeaderless = false
        var room = buffer.roomBytes
        for (topicPartition, partition) in partitions where !partition.isStopped {
            guard partition.notBefore <= now else {
                wake(at: partition.notBefore)
                continue
            }
            if partition.offset == nil, partition.start.isCommitted {
                if !partition.isAsking { committed.append(topicPartition) }
                continue
            }
            guard let leader = engine.metadata.partition(topicPartition)?.leader else {
                noteMissing(partition, now)
                isLeaderless = true
                continue
            }
            if partition.offset == nil {
                guard !partition.isAsking, case .position(let spec) = partition.start else { continue }
                questions[leader, default: [:]][topicPartition] = spec
                continue
            }
            let demand = buffer.demand(of: topicPartition)
            if demand.isPaused { continue }
            let source = partition.preferred ?? leader
            if demand.byteCount >= configuration.partitionFetchBytes * Self.prefetchDepth || room <= 0 {
                crowded.insert(source)
            } else {
                byLeader[source, default: []].append(partition)
            }
        }
        if isLeaderless { refreshMetadata() }
        if !committed.isEmpty { askCommitted(committed) }
        for (leader, queries) in questions { ask(leader, queries) }
        // Answers on their way are not in the buffer yet; with equal shares they are at most as much again.
        let share = max(configuration.bufferBytes / max(byLeader.count, 1), 1)
        for (leader, wanted) in byLeader {
            let broker = self.broker(leader)
            guard !broker.isFetching else { continue }
            guard broker.notBefore <= now else {
                wake(at: broker.notBefore)
                continue
            }
            let bytes = min(configuration.fetchMaximumBytes, share, max(room, 1))
            room -= bytes
            fetch(wanted, from: leader, broker, byteLimit: bytes, isCrowded: crowded.contains(leader))
            if room <= 0 { break }
        }
    }

    private func broker(_ id: BrokerID) -> Broker {
        if let known = brokers[id] { return known }
        let broker = Broker()
        brokers[id] = broker
        return broker
    }

    private func wake(at time: NIODeadline) {
        guard time < wakeAt else { return }
        wakeTimer?.cancel()
        wakeAt = time
        wakeTimer = loop.assumeIsolated().scheduleTask(deadline: time) {
            self.wakeAt = .distantFuture
            self.pump()
        }
    }

    func shutDown() {
        wakeTimer?.cancel()
        partitions.removeAll()
    }

    // MARK: Metadata

    /// Asks for metadata and tells the caller if no broker has answered since the beginning for too long.
    func refreshMetadata() {
        engine.refreshMetadata { error in
            guard let error else {
                self.hadMetadata = true
                self.metadataFailingSince = nil
                return
            }
            guard !self.hadMetadata, error.code != .closed else { return }
            let since = self.metadataFailingSince ?? .now()
            self.metadataFailingSince = since
            if NIODeadline.now() - since >= TimeAmount(self.configuration.client.operationTimeout) {
                self.metadataFailingSince = .now()
                self.buffer.report(error)
            }
        }
    }

    /// A partition without a leader or that does not exist.
    private func noteMissing(_ partition: Partition, _ now: NIODeadline) {
        let name = partition.topicPartition
        back(off: partition)
        let code = engine.topicErrors[name.topic]
        if let topic = engine.metadata.topics[name.topic],
            Int(name.partition.rawValue) >= topic.partitions.count
        {
            guard partition.failureCount >= Self.unknownTopicLimit else { return }
            stop(
                partition,
                ClientError(
                    .unknownTopic,
                    "topic '\(name.topic)' has no partition \(name.partition); it has \(topic.partitions.count)",
                    brokerCode: .unknownTopicOrPartition))
        } else if code == .unknownTopicOrPartition {
            guard partition.failureCount >= Self.unknownTopicLimit else { return }
            stop(partition, .unknownTopic(name.topic, askedOf: engine.brokerNames))
        } else if let code, !code.isRetriable {
            stop(partition, .broker(code, "topic '\(name.topic)'"))
        }
    }

    private func back(off partition: Partition) {
        partition.failureCount += 1
        partition.notBefore = .now() + TimeAmount(engine.retryBackoff.pause(after: partition.failureCount))
        partition.preferred = nil
        wake(at: partition.notBefore)
    }

    private func stop(_ partition: Partition, _ error: ClientError) {
        partition.isStopped = true
        buffer.report(error)
    }

    // MARK: Starting positions

    private func askCommitted(_ wanted: [TopicPartition]) {
        guard !isAskingCommitted, let group = configuration.groupID else { return }
        isAskingCommitted = true
        for name in wanted { partitions[name]?.isAsking = true }
        func finish(_ result: Result<[TopicPartition: CommittedOffset], ClientError>) {
            isAskingCommitted = false
            if case .failure = result { engine.forgetCoordinator(of: group) }
            for name in wanted {
                guard let partition = partitions[name], partition.isAsking, partition.offset == nil else {
                    continue
                }
                partition.isAsking = false
                switch result {
                case .success(let offsets):
                    if let offset = offsets[name]?.offset {
                        found(offset, partition)
                    } else if case .committedElse(let offset) = partition.start {
                        found(offset, partition)
                    } else {
                        reset(partition, because: "group '\(group)' has no committed position in \(name)")
                    }
                case .failure(let error) where error.isRetriable:
                    back(off: partition)
                case .failure(let error):
                    stop(partition, error)
                }
            }
            pump()
        }
        engine.coordinator(of: group) { result in
            switch result {
            case .success(let coordinator):
                self.engine.fetchCommitted(
                    group: group, partitions: wanted, from: coordinator, completion: finish)
            case .failure(let error):
                finish(.failure(error))
            }
        }
    }

    private func found(_ offset: Offset, _ partition: Partition) {
        partition.offset = offset
        partition.failureCount = 0
        partition.cursor.settle(offset, version: partition.version)
        // After a reset the caller is elsewhere. It gets there behind what the buffer still holds.
        if partition.cursor.position != offset {
            buffer.append(
                [marker(partition, from: offset, next: offset)], endOffset: nil, to: partition.topicPartition)
        }
    }

    /// Goes where the reset policy says, or reports that there is none.
    private func reset(_ partition: Partition, because reason: String) {
        partition.offset = nil
        switch configuration.offsetReset {
        case .earliest: partition.start = .position(.earliest)
        case .latest: partition.start = .position(.latest)
        case .fail:
            stop(
                partition,
                ClientError(
                    .offsetOutOfRange,
                    reason + "; seek to a position that exists or set offsetReset to earliest or latest"))
        }
    }

    private func ask(_ leader: BrokerID, _ queries: [TopicPartition: OffsetSpec]) {
        for name in queries.keys { partitions[name]?.isAsking = true }
        engine.listOffsets(queries, isolation: configuration.isolation, from: leader) { result in
            for (name, spec) in queries {
                guard let partition = self.partitions[name], partition.isAsking, partition.offset == nil,
                    partition.start == .position(spec)
                else { continue }
                partition.isAsking = false
                switch result {
                case .failure(let error) where error.isRetriable:
                    self.back(off: partition)
                case .failure(let error):
                    self.stop(partition, error)
                case .success(let answers):
                    self.take(answers[name], spec, partition)
                }
            }
            if case .failure = result { self.refreshMetadata() }
            self.pump()
        }
    }

    private func take(_ answer: ClientEngine.OffsetAnswer?, _ spec: OffsetSpec, _ partition: Partition) {
        guard let answer else {
            back(off: partition)
            return
        }
        if answer.code != .none {
            if answer.code.isRetriable {
                back(off: partition)
                refreshMetadata()
            } else {
                stop(partition, .broker(answer.code, "offsets of \(partition.topicPartition)"))
            }
            return
        }
        if let listed = answer.listed {
            found(listed.offset, partition)
        } else if case .timestamp = spec {
            // No record that late: the next one to come is the first that can be.
            partition.start = .position(.latest)
        } else {
            back(off: partition)
        }
    }

    // MARK: Fetching

    private func fetch(
        _ wanted: [Partition], from leader: BrokerID, _ broker: Broker, byteLimit: Int, isCrowded: Bool
    ) {
        broker.isFetching = true
        let wait =
            isCrowded ? min(configuration.fetchMaximumWait, Self.crowdedWait) : configuration.fetchMaximumWait
        let hasIDs = wanted.allSatisfy { engine.metadata.topics[$0.topicPartition.topic]?.id != nil }
        var asked: [TopicPartition: (partition: Partition, offset: Offset)] = [:]
        for partition in wanted {
            if let offset = partition.offset { asked[partition.topicPartition] = (partition, offset) }
        }
        engine.request(
            FetchRequest.self, to: .broker(leader), purpose: .data,
            limit: hasIDs ? .max : Self.lastNameVersion,
            timeout: max(configuration.client.requestTimeout, wait + Self.graceTime)
        ) { version in
            self.fetchRequest(wanted, version: version, wait: wait, byteLimit: byteLimit)
        } completion: { result in
            broker.isFetching = false
            switch result {
            case .success(let answer):
                broker.failureCount = 0
                self.take(answer, asked)
            case .failure(let error):
                self.failed(error, leader, broker, asked.values.map(\.partition))
            }
            // Never inside a pump that may be going on.
            self.loop.assumeIsolated().execute { self.pump() }
        }
    }

    private func failed(_ error: ClientError, _ leader: BrokerID, _ broker: Broker, _ asked: [Partition]) {
        guard error.code != .closed else { return }
        broker.failureCount += 1
        broker.notBefore = .now() + TimeAmount(engine.retryBackoff.pause(after: broker.failureCount))
        for partition in asked { partition.preferred = nil }
        refreshMetadata()
        if error.isRetriable {
            engine.logger.debug("fetch failed", metadata: ["broker": "\(leader)", "error": "\(error)"])
        } else {
            buffer.report(error)
        }
    }

    private func fetchRequest(
        _ wanted: [Partition], version: Int16, wait: Duration, byteLimit: Int
    ) -> FetchRequest {
        var request = FetchRequest()
        request.maxWaitMs = wait.wireMilliseconds
        request.minBytes = Int32(clamping: configuration.fetchMinimumBytes)
        request.maxBytes = Int32(clamping: byteLimit)
        request.isolationLevel = configuration.isolation == .readCommitted ? 1 : 0
        request.sessionID = 0
        request.sessionEpoch = -1
        if version >= 11, let rack = configuration.rackID { request.rackID = rack }
        var places: [String: Int] = [:]
        // The broker serves partitions in this order, so it changes from fetch to fetch.
        for partition in wanted.shuffled() {
            guard let offset = partition.offset else { continue }
            let name = partition.topicPartition
            var item = FetchRequest.FetchPartition()
            item.partition = name.partition.rawValue
            item.fetchOffset = offset.rawValue
            item.currentLeaderEpoch =
                partition.preferred == nil ? engine.metadata.partition(name)?.leaderEpoch ?? -1 : -1
            item.partitionMaxBytes = Int32(clamping: configuration.partitionFetchBytes)
            if let place = places[name.topic] {
                request.topics[place].partitions.append(item)
            } else {
                var topic = FetchRequest.FetchTopic()
                topic.topic = name.topic
                if version > Self.lastNameVersion, let id = engine.metadata.topics[name.topic]?.id {
                    topic.topicID = id
                }
                topic.partitions = [item]
                places[name.topic] = request.topics.count
                request.topics.append(topic)
            }
        }
        return request
    }

    private func take(
        _ answer: Answer<FetchResponse>, _ asked: [TopicPartition: (partition: Partition, offset: Offset)]
    ) {
        let response = answer.response
        for endpoint in response.nodeEndpoints {
            engine.add(nodeID: endpoint.nodeID, host: endpoint.host, port: endpoint.port, rack: endpoint.rack)
        }
        if response.errorCode != 0 {
            let code = ErrorCode(rawValue: response.errorCode)
            if !code.isRetriable { buffer.report(.broker(code, "fetch from broker \(answer.address)")) }
            for (partition, _) in asked.values { back(off: partition) }
            return
        }
        for topic in response.responses {
            let name =
                answer.version > Self.lastNameVersion ? engine.metadata.names[topic.topicID] : topic.topic
            guard let name else { continue }
            for item in topic.partitions {
                let topicPartition = TopicPartition(name, item.partitionIndex)
                // A seek or another assignment in between makes the answer void.
                guard let (partition, offset) = asked[topicPartition],
                    partitions[topicPartition] === partition,
                    partition.offset == offset
                else { continue }
                take(item, partition, offset)
            }
        }
    }

    private func take(_ item: FetchResponse.PartitionData, _ partition: Partition, _ offset: Offset) {
        let code = ErrorCode(rawValue: item.errorCode)
        let name = partition.topicPartition
        switch code {
        case .none:
            partition.failureCount = 0
            if item.preferredReadReplica >= 0,
                engine.metadata.brokers[BrokerID(item.preferredReadReplica)] != nil
            {
                partition.preferred = BrokerID(item.preferredReadReplica)
                return
            }
            let end = configuration.isolation == .readCommitted ? item.lastStableOffset : item.highWatermark
            var batches: [ConsumedBatch] = []
            do {
                try decode(item, partition, offset, into: &batches)
            } catch {
                stop(partition, error)
            }
            buffer.append(batches, endOffset: end >= 0 ? Offset(end) : nil, to: name)
        case .offsetOutOfRange:
            if partition.preferred != nil {
                partition.preferred = nil
                return
            }
            engine.logger.notice(
                "offset out of range",
                metadata: [
                    "partition": "\(name)", "offset": "\(offset)", "reset": "\(configuration.offsetReset)",
                ])
            reset(
                partition,
                because:
                    "offset \(offset) of \(name) is not in the log, which begins at \(item.logStartOffset)")
        case .corruptMessage:
            stop(partition, .broker(code, "\(name) at offset \(offset)"))
        case _ where code.isRetriable || code == .fencedLeaderEpoch || code == .unknownLeaderEpoch:
            let hinted = engine.hint(
                leader: item.currentLeader.leaderID, epoch: item.currentLeader.leaderEpoch, of: name)
            if !hinted {
                back(off: partition)
                refreshMetadata()
            }
            if code == .unknownTopicOrPartition, partition.failureCount >= Self.unknownTopicLimit {
                stop(partition, .unknownTopic(name.topic, askedOf: engine.brokerNames))
            }
        case _:
            stop(partition, .broker(code, "fetch of \(name)"))
        }
    }

    // MARK: Batches

    /// Cuts the record bytes of one partition into batches and verifies and decompresses each. The last one may
    /// be cut off by the byte limit; it comes whole with the next fetch.
    private func decode(
        _ item: FetchResponse.PartitionData, _ partition: Partition, _ offset: Offset,
        into batches: inout [ConsumedBatch]
    ) throws(ClientError) {
        guard var bytes = item.records else { return }
        var aborted = AbortedTransactions(
            configuration.isolation == .readCommitted
                ? (item.abortedTransactions ?? []).map { ($0.producerID, $0.firstOffset) } : [])
        var next = offset
        while bytes.readableBytes >= RecordBatchHeader.byteCount {
            do {
                let header = try RecordBatchHeader(reading: bytes)
                guard let slice = bytes.readSlice(length: header.totalByteCount) else { break }
                if configuration.isChecksumVerified {
                    _ = try RecordBatchValidator.checkHeader(slice, limits: limits)
                }
                let end = header.lastOffset
                if end < next.rawValue { continue }
                var isVisible = aborted.isVisible(header)
                if header.isControl {
                    aborted.pass(control: header, slice)
                    isVisible = false
                }
                let from = next
                next = Offset(end) + 1
                if isVisible, header.recordCount > 0,
                    let batch = try makeBatch(slice, header, partition, from: from, next: next)
                {
                    batches.append(batch)
                } else if batches.isEmpty {
                    batches.append(marker(partition, from: from, next: next))
                } else {
                    batches[batches.count - 1].nextOffset = next
                }
                partition.offset = next
            } catch {
                throw ClientError(
                    .corruptData,
                    "\(partition.topicPartition) at offset \(next): \(error); if the bytes are damaged on the broker, "
                        + "seek behind the batch to go on without it", brokerCode: error.errorCode,
                    cause: error)
            }
        }
        if batches.isEmpty, next == offset, bytes.readableBytes > 0 {
            throw ClientError(
                .recordTooLarge,
                "the batch at offset \(offset) of \(partition.topicPartition) did not come whole within "
                    + "\(configuration.partitionFetchBytes) bytes; raise partitionFetchBytes")
        }
    }

    /// Nothing to hand out, but the caller's position must move on.
    private func marker(_ partition: Partition, from offset: Offset, next: Offset) -> ConsumedBatch {
        ConsumedBatch(
            topicPartition: partition.topicPartition, firstOffset: offset, lastOffset: offset, count: 0,
            leaderEpoch: nil, records: nil, nextOffset: next, byteCount: 0, cursor: partition.cursor,
            version: partition.version)
    }

    private func makeBatch(
        _ slice: ByteBuffer, _ header: RecordBatchHeader, _ partition: Partition, from wanted: Offset,
        next: Offset
    ) throws(RecordBatchError) -> ConsumedBatch? {
        var records = try RecordIterator(slice, limits: limits, decompressor: decompressor)
        var count = Int(header.recordCount)
        var first = Offset(header.baseOffset)
        if first < wanted {
            // The batch holds records before the one asked for; they are passed over here.
            first = wanted
            var probe = records
            while let record = try probe.next(), record.offset < wanted {
                records = probe
                count -= 1
            }
            if count == 0 { return nil }
        }
        return ConsumedBatch(
            topicPartition: partition.topicPartition, firstOffset: first,
            lastOffset: Offset(header.lastOffset),
            count: count,
            leaderEpoch: header.partitionLeaderEpoch >= 0 ? LeaderEpoch(header.partitionLeaderEpoch) : nil,
            records: records, nextOffset: next, byteCount: max(slice.readableBytes, records.recordByteCount),
            cursor: partition.cursor, version: partition.version)
    }
}
