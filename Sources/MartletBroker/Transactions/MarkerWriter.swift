internal import MartletController
internal import MartletCoordinators
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// Takes the markers of a transaction to its partitions, wherever their leaders are.
enum MarkerWriter {
    /// Writes the marker to each partition. `done` runs once on `loop`, with one outcome for each partition, when
    /// all markers are committed or refused.
    static func write(
        _ marker: TransactionMarker, to partitions: [TopicPartition], from loop: BrokerLoop,
        done: @escaping ([PartitionOutcome]) -> Void
    ) {
        write(marker, to: partitions, from: loop, goesElsewhere: true, done: done)
    }

    /// As ``write(_:to:from:done:)``, to partitions that this broker leads, and to no others.
    static func writeHere(
        _ marker: TransactionMarker, to partitions: [TopicPartition], from loop: BrokerLoop,
        done: @escaping ([PartitionOutcome]) -> Void
    ) {
        write(marker, to: partitions, from: loop, goesElsewhere: false, done: done)
    }

    private static func write(
        _ marker: TransactionMarker, to partitions: [TopicPartition], from loop: BrokerLoop, goesElsewhere: Bool,
        done: @escaping ([PartitionOutcome]) -> Void
    ) {
        let gathered = Gathered(count: partitions.count, done: done)
        guard !partitions.isEmpty else { return done([]) }
        let loops = loop.services.loops
        var byLoop: [[(index: Int, key: PartitionKey, isOffsets: Bool)]] = Array(repeating: [], count: loops.count)
        var byBroker: [BrokerID: [Int]] = [:]
        for (index, partition) in partitions.enumerated() {
            guard let topic = loop.image.topic(named: partition.topic),
                let registration = topic.partition(partition.partition)
            else {
                // The topic is gone, and with it what the marker would close.
                gathered.take(index, PartitionOutcome(partition: partition, error: .unknownTopicOrPartition))
                continue
            }
            guard registration.leader == loop.services.settings.nodeID else {
                if goesElsewhere, let leader = registration.leader {
                    byBroker[leader, default: []].append(index)
                } else {
                    gathered.take(index, PartitionOutcome(partition: partition, error: .notLeaderOrFollower))
                }
                continue
            }
            let key = PartitionKey(topicID: topic.id, partition: partition.partition)
            byLoop[loops.index(of: key)].append((index, key, partition.topic == TopicName.consumerOffsets))
        }
        for (broker, indexes) in byBroker.sorted(by: { $0.key < $1.key }) {
            send(marker, to: indexes.map { partitions[$0] }, broker, from: loop) { outcomes in
                for (index, outcome) in zip(indexes, outcomes) { gathered.take(index, outcome) }
            }
        }
        for (number, items) in byLoop.enumerated() where !items.isEmpty {
            let target = loops.all[number]
            let bound = NIOLoopBound(gathered, eventLoop: loop.eventLoop)
            target.post { target in
                for (index, key, isOffsets) in items {
                    let name = partitions[index]
                    write(marker, key, isOffsets: isOffsets, on: target) { code in
                        loop.post { _ in
                            bound.value.take(index, PartitionOutcome(partition: name, error: code))
                        }
                    }
                }
            }
        }
    }

    /// Has another broker write the marker; `done` runs on `loop`, with the outcomes in the order of `partitions`.
    private static func send(
        _ marker: TransactionMarker, to partitions: [TopicPartition], _ broker: BrokerID, from loop: BrokerLoop,
        done: @escaping ([PartitionOutcome]) -> Void
    ) {
        func outcomes(_ code: (TopicPartition) -> ErrorCode) -> [PartitionOutcome] {
            partitions.map { PartitionOutcome(partition: $0, error: code($0)) }
        }
        guard let address = loop.image.peerAddress(of: broker) else { return done(outcomes { _ in .notLeaderOrFollower }) }
        let request = WriteTxnMarkersRequest(marker, partitions)
        loop.peers.send(request, to: broker, at: address, from: request.oldestVersion) { response in
            var codes: [TopicPartition: ErrorCode] = [:]
            for topic in response?.markers.first?.topics ?? [] {
                for partition in topic.partitions {
                    codes[TopicPartition(topic.name, partition.partitionIndex)] = ErrorCode(rawValue: partition.errorCode)
                }
            }
            done(
                outcomes { partition in
                    let code = codes[partition] ?? .notLeaderOrFollower
                    // This broker knows the topic: the other one may not yet, and only a deleted one needs no marker.
                    return code == .unknownTopicOrPartition ? .notLeaderOrFollower : code
                })
        }
    }

    /// `reply` runs on `loop`.
    private static func write(
        _ marker: TransactionMarker, _ key: PartitionKey, isOffsets: Bool, on loop: BrokerLoop,
        reply: @escaping @Sendable (ErrorCode) -> Void
    ) {
        if isOffsets {
            // The group coordinator learns of the end in the order of its log.
            guard loop.groups.endTransaction(key, marker, reply: reply) else { return reply(.notLeaderOrFollower) }
            return
        }
        guard let partition = loop.partition(key) else { return reply(loop.absence(of: key)) }
        partition.whenOpen { partition in
            partition.appendMarker(MarkerAppend(marker)) { reply($0.refusal?.error ?? .none) }
        }
    }

    /// Outcomes as they come in, on the loop of the asker.
    private final class Gathered {
        private var outcomes: [PartitionOutcome?]
        private var missing: Int
        private let done: ([PartitionOutcome]) -> Void

        init(count: Int, done: @escaping ([PartitionOutcome]) -> Void) {
            outcomes = Array(repeating: nil, count: count)
            missing = count
            self.done = done
        }

        func take(_ index: Int, _ outcome: PartitionOutcome) {
            outcomes[index] = outcome
            missing -= 1
            if missing == 0 { done(outcomes.compactMap { $0 }) }
        }
    }
}

extension WriteTxnMarkersRequest {
    fileprivate init(_ marker: TransactionMarker, _ partitions: [TopicPartition]) {
        self.init()
        var wanted = WritableTxnMarker()
        wanted.producerID = marker.producer.id
        wanted.producerEpoch = marker.producer.epoch
        wanted.transactionResult = marker.commits
        wanted.coordinatorEpoch = marker.coordinatorEpoch
        wanted.transactionVersion = marker.transactionProtocol == .second ? 2 : 0
        for partition in partitions {
            if wanted.topics.last?.name != partition.topic {
                var topic = WritableTxnMarkerTopic()
                topic.name = partition.topic
                wanted.topics.append(topic)
            }
            wanted.topics[wanted.topics.count - 1].partitionIndexes.append(partition.partition.rawValue)
        }
        markers = [wanted]
    }

    /// The rules of the second protocol need a field of version 2 (KIP-1228).
    fileprivate var oldestVersion: Int16 { markers.contains { $0.transactionVersion > 0 } ? 2 : 1 }
}

extension MarkerAppend {
    init(_ marker: TransactionMarker) {
        self.init(
            producerID: marker.producer.id, producerEpoch: marker.producer.epoch, commits: marker.commits,
            coordinatorEpoch: marker.coordinatorEpoch, raisesEpoch: marker.transactionProtocol == .second)
    }
}
