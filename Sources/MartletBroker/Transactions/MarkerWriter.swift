internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// Takes the markers of a transaction to the partitions that this broker leads.
enum MarkerWriter {
    /// Writes the marker to each partition. `done` runs once on `loop`, with one outcome for each partition, when
    /// all markers are committed or refused.
    static func write(
        _ marker: TransactionMarker, to partitions: [TopicPartition], from loop: BrokerLoop,
        done: @escaping ([PartitionOutcome]) -> Void
    ) {
        let gathered = Gathered(count: partitions.count, done: done)
        guard !partitions.isEmpty else { return done([]) }
        let loops = loop.services.loops
        var byLoop: [[(index: Int, key: PartitionKey, isOffsets: Bool)]] = Array(repeating: [], count: loops.count)
        for (index, partition) in partitions.enumerated() {
            guard let topic = loop.image.topic(named: partition.topic), topic.partition(partition.partition) != nil
            else {
                // The topic is gone, and with it what the marker would close.
                gathered.take(index, PartitionOutcome(partition: partition, error: .unknownTopicOrPartition))
                continue
            }
            let key = PartitionKey(topicID: topic.id, partition: partition.partition)
            byLoop[loops.index(of: key)].append((index, key, partition.topic == TopicName.consumerOffsets))
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
        guard let partition = loop.partition(key) else { return reply(loop.absence) }
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

extension MarkerAppend {
    init(_ marker: TransactionMarker) {
        self.init(
            producerID: marker.producer.id, producerEpoch: marker.producer.epoch, commits: marker.commits,
            coordinatorEpoch: marker.coordinatorEpoch, raisesEpoch: marker.transactionProtocol == .second)
    }
}
