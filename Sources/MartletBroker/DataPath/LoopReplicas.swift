internal import DequeModule
internal import MartletController
internal import MartletLogModel
internal import MartletStorage
internal import NIOCore

/// The partitions of a loop that have replicas on other brokers: they are open whether a client asks for them or not.
struct LoopReplicas {
    /// Waiting to be opened, leaders first.
    var leaders: Deque<PartitionKey> = []
    var followers: Deque<PartitionKey> = []
    /// Waiting or being opened.
    var unopened: Set<PartitionKey> = []
    var openingCount = 0
    /// In ascending order.
    var keys: [PartitionKey] = []
    var tickTask: RepeatedTask?
}

extension BrokerLoop {
    /// Logs opened at once beside those that clients ask for; more would only wait for each other at the device.
    private static let openingLimit = 16
    /// Leaders look so often for followers that lag, and repeat lost proposals. A fraction of `replica.lag.time.max.ms`.
    private static let replicaTickInterval: TimeAmount = .seconds(1)

    /// Opens replicas that are new here and tells leaders about the brokers of their followers.
    func replicasChanged(since previous: MetadataImage, _ delta: MetadataDelta?) {
        // A broker without others has no such partitions.
        guard image.brokers.count > 1 || !replicas.keys.isEmpty, !isStopping else { return }
        let local = services.settings.nodeID
        func look(at topic: TopicImage, _ index: Int) {
            let registration = topic.partitions[index]
            let key = PartitionKey(topicID: topic.id, partition: PartitionIndex(Int32(index)))
            guard registration.replicas.count > 1, registration.replicas.contains(local),
                services.loops.loop(of: key) === self
            else { return }
            if existingPartition(key) == nil, replicas.unopened.insert(key).inserted {
                if registration.leader == local { replicas.leaders.append(key) } else { replicas.followers.append(key) }
            }
            found.append(key)
        }
        var found: [PartitionKey] = []
        if let delta, previous.brokers.count > 1 {
            for created in delta.createdTopics {
                guard let topic = image.topic(id: created.id) else { continue }
                for index in topic.partitions.indices { look(at: topic, index) }
            }
            for changed in delta.changedTopics {
                guard let topic = image.topic(id: changed.id) else { continue }
                for index in delta.changedPartitions[changed.id] ?? []
                where topic.partitions.indices.contains(Int(index)) { look(at: topic, Int(index)) }
            }
            let known = Set(found)
            found += replicas.keys.filter { !known.contains($0) }
        } else {
            for topic in image.sortedTopics() {
                for index in topic.partitions.indices { look(at: topic, index) }
            }
        }
        replicas.keys = found.filter { isReplicated($0) }.sorted()
        openReplicas()
        brokersChanged(since: previous)
        scheduleReplicaTicks()
    }

    private func isReplicated(_ key: PartitionKey) -> Bool {
        guard let registration = image.topic(id: key.topicID)?.partition(key.partition) else { return false }
        return registration.replicas.count > 1 && registration.replicas.contains(services.settings.nodeID)
    }

    private func openReplicas() {
        while replicas.openingCount < Self.openingLimit, !isStopping,
            let key = replicas.leaders.popFirst() ?? replicas.followers.popFirst()
        {
            replicas.unopened.remove(key)
            // Deleted or moved away meanwhile, or a client has asked for it.
            guard isReplicated(key), existingPartition(key) == nil, let partition = partition(key) else { continue }
            replicas.openingCount += 1
            partition.whenOpen { _ in
                // Never at once: whoever opened it is in the middle of something.
                self.eventLoop.execute {
                    self.replicas.openingCount -= 1
                    self.openReplicas()
                }
            }
        }
    }

    private func brokersChanged(since previous: MetadataImage) {
        let local = services.settings.nodeID
        for broker in image.brokers where broker.id != local {
            let old = previous.broker(broker.id)
            guard old != broker else { continue }
            let standing = image.standing(of: broker.id)
            if previous.standing(of: broker.id) != standing {
                for key in replicas.keys { existingPartition(key)?.standingChanged(of: broker.id, standing) }
            }
            if old?.epoch != broker.epoch || old?.endpoints != broker.endpoints,
                let address = image.peerAddress(of: broker.id)
            {
                replicaFetchers?.leaderMoved(broker.id, to: address)
            }
        }
    }

    private func scheduleReplicaTicks() {
        guard !replicas.keys.isEmpty else {
            replicas.tickTask?.cancel()
            replicas.tickTask = nil
            return
        }
        guard replicas.tickTask == nil else { return }
        replicas.tickTask = eventLoop.scheduleRepeatedTask(
            initialDelay: Self.replicaTickInterval, delay: Self.replicaTickInterval
        ) { _ in
            for key in self.replicas.keys { self.existingPartition(key)?.tick() }
        }
    }

    func stopReplicas() {
        replicas.tickTask?.cancel()
        replicas = LoopReplicas()
        replicaFetchers?.close()
    }
}
