import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletTransport
import NIOCore

/// Fetches the records of a share group's member: one session, and one request at a time, per broker. Brokers are asked for
/// records only while somebody polls and none are left: a record that waits here is locked to others. What was said about
/// records goes along with the next fetch from their broker, see ``ShareAcknowledger``.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ShareFetcher: @unchecked Sendable {
    private typealias Batches = ShareRequests.Batches

    /// Fetch request timeouts beyond the broker's own wait.
    private static let graceTime = Duration.seconds(10)

    let engine: ClientEngine
    let membership: ShareMembership
    private let buffer: ShareBuffer
    private let configuration: ShareConsumerConfiguration
    private let decoder: ShareDecoder
    let acknowledger: ShareAcknowledger
    private var isWanted = false
    private var wakeTimer: Scheduled<Void>?
    private var wakeAt = NIODeadline.distantFuture
    /// Assigned partitions without a name or a leader: when to ask for metadata again, and how often that was in vain.
    private var missingNotBefore = NIODeadline.uptimeNanoseconds(0)
    private var missingCount = 0

    init(
        engine: ClientEngine, membership: ShareMembership, buffer: ShareBuffer,
        configuration: ShareConsumerConfiguration
    ) {
        self.engine = engine
        self.membership = membership
        self.buffer = buffer
        self.configuration = configuration
        decoder = ShareDecoder(inflatedByteLimit: configuration.decompressedBatchByteLimit)
        acknowledger = ShareAcknowledger(
            engine: engine, membership: membership, buffer: buffer, group: configuration.groupID)
    }

    func start() {
        membership.onChange = { [weak self] in self?.pump() }
        acknowledger.onFree = { [weak self] in self?.pump() }
        engine.onMetadata = { [weak self] in
            self?.membership.metadataChanged()
            self?.pump()
        }
    }

    private var loop: any EventLoop { engine.loop }

    // MARK: Inputs

    /// Whether a poll waits for records.
    func want(_ isWanted: Bool) {
        self.isWanted = isWanted
        guard isWanted else { return }
        membership.polled()
        pump()
    }

    /// Ends all sessions, see ``ShareAcknowledger/endSessions(_:)``.
    func endSessions(_ reply: Reply<[ShareAcknowledgementResult]>) {
        isWanted = false
        acknowledger.endSessions(reply)
    }

    // MARK: Pump

    /// There may be something to fetch.
    func pump() {
        loop.preconditionInEventLoop()
        guard !engine.isClosed, buffer.isReading else { return }
        acknowledger.drain()
        let now = NIODeadline.now()
        var byLeader: [BrokerID: Set<SharePlace>] = [:]
        var isMissing = false
        for place in membership.places {
            if let name = engine.metadata.names[place.topicID],
                let leader = engine.metadata.partition(TopicPartition(name, place.partition))?.leader
            {
                byLeader[leader, default: []].insert(place)
            } else {
                isMissing = true
            }
        }
        if isMissing { askForMissing(now) } else { missingCount = 0 }
        // Brokers that lead nothing of ours any more may still be owed words about what they have given out.
        for node in acknowledger.allNodes where byLeader[node.id] == nil && !node.isBusy {
            if !node.pending.isEmpty {
                acknowledger.sendPending(node)
            } else if node.session.isOpen, node.isSettled {
                acknowledger.endSession(node)
            }
        }
        guard isWanted, !buffer.hasReady else { return }
        for (leader, places) in byLeader.sorted(by: { $0.key < $1.key }) {
            let node = acknowledger.node(leader)
            guard !node.isBusy else { continue }
            if node.notBefore > now { wake(at: node.notBefore) } else { fetch(places, node) }
        }
    }

    private func askForMissing(_ now: NIODeadline) {
        if missingNotBefore <= now {
            missingCount += 1
            missingNotBefore = now + TimeAmount(engine.retryBackoff.pause(after: missingCount))
            engine.refreshMetadata()
        }
        wake(at: missingNotBefore)
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

    // MARK: Fetching

    private func fetch(_ places: Set<SharePlace>, _ node: ShareNode) {
        // What this broker does not lead for us any more is acknowledged by a request of its own.
        if node.session.isOpen, !node.pending.places.isSubset(of: places) {
            return acknowledger.sendPending(node)
        }
        node.occupy()
        let batches = node.session.isOpen ? node.pending.take() : [:]
        let plan = node.session.plan(places)
        if plan.epoch == ShareSession.openingEpoch { node.names = [:] }
        for place in plan.added { node.names[place.topicID] = engine.metadata.names[place.topicID] }
        let made = ShareRequests.fetch(plan, batches, membership.memberID, configuration)
        let done: ShareNode.Completion = batches.isEmpty ? { _ in } : node.begin()
        engine.request(
            ShareFetchRequest.self, to: .broker(node.id), purpose: .data,
            timeout: max(configuration.client.requestTimeout, configuration.fetchMaximumWait + Self.graceTime)
        ) { _ in
            made
        } completion: { result in
            let verdict: ShareAcknowledger.Verdict
            switch result {
            case .success(let answer) where answer.response.errorCode == 0:
                node.session.fetched()
                verdict = self.take(answer.response, batches, node)
            case .success(let answer):
                verdict = self.failed(
                    .broker(
                        ErrorCode(rawValue: answer.response.errorCode),
                        "fetch in share group '\(self.configuration.groupID)'",
                        detail: answer.response.errorMessage), batches, node)
            case .failure(let error):
                verdict = self.failed(error, batches, node)
            }
            self.acknowledger.settle(verdict, batches, node, completion: done)
        }
    }

    /// - Returns: What became of the acknowledgements that went along.
    private func failed(
        _ error: ClientError, _ batches: Batches, _ node: ShareNode
    ) -> ShareAcknowledger.Verdict {
        let verdict = acknowledger.lost(batches, node, to: error)
        guard error.code != .closed else { return verdict }
        engine.refreshMetadata()
        if error.isRetriable {
            engine.logger.debug(
                "share fetch failed", metadata: ["broker": "\(node.id)", "error": "\(error)"])
        } else {
            buffer.report(error)
        }
        return verdict
    }

    /// - Returns: What became of the acknowledgements that went along.
    private func take(
        _ response: ShareFetchResponse, _ batches: Batches, _ node: ShareNode
    ) -> ShareAcknowledger.Verdict {
        for endpoint in response.nodeEndpoints {
            engine.add(nodeID: endpoint.nodeID, host: endpoint.host, port: endpoint.port, rack: endpoint.rack)
        }
        let lock = Duration.milliseconds(Int64(response.acquisitionLockTimeoutMs))
        if lock > .zero { buffer.setLockTimeout(lock) }
        let lockEnd = lock > .zero ? NIODeadline.now() + TimeAmount(lock) : .distantFuture
        var errors: [SharePlace: ClientError?] = [:]
        var records: [SharedRecord] = []
        var isFaulty = false
        for topic in response.responses {
            for item in topic.partitions {
                let place = SharePlace(topicID: topic.topicID, partition: item.partitionIndex)
                errors[place] = .some(
                    acknowledger.error(item.acknowledgeErrorCode, item.acknowledgeErrorMessage, place, node))
                let code = ErrorCode(rawValue: item.errorCode)
                let isFine =
                    code == .none
                    ? decode(item, place, lockEnd, node, into: &records) : refused(code, item, place, node)
                if !isFine { isFaulty = true }
            }
        }
        node.heldCount += records.count
        // The poll that waits gets these, or the error; the next one asks for more.
        if !records.isEmpty || isFaulty { isWanted = false }
        if isFaulty { node.back(off: engine.retryBackoff) } else { node.failureCount = 0 }
        buffer.append(records)
        return acknowledger.sort(batches, node, errors)
    }

    /// - Returns: Whether fetching goes on as if nothing were wrong; if not, the polling task is told.
    private func refused(
        _ code: ErrorCode, _ item: ShareFetchResponse.PartitionData, _ place: SharePlace, _ node: ShareNode
    ) -> Bool {
        let name = acknowledger.name(place, node)
        guard code.isRetriable || code == .fencedLeaderEpoch || code == .unknownLeaderEpoch else {
            buffer.report(.broker(code, "fetch of \(name)", detail: item.errorMessage))
            return false
        }
        if engine.hint(leader: item.currentLeader.leaderID, epoch: item.currentLeader.leaderEpoch, of: name) {
            return true
        }
        node.notBefore = .now() + TimeAmount(engine.retryBackoff.pause(after: 1))
        engine.refreshMetadata()
        return true
    }

    /// Takes the records of one partition, and says of the other offsets that were given what there is to say.
    ///
    /// - Returns: Whether all could be read; if not, the polling task is told. What is given back comes again at once and
    ///   counts as a delivery, so that asking in a tight circle would have the group give it up for everybody.
    private func decode(
        _ item: ShareFetchResponse.PartitionData, _ place: SharePlace, _ lockEnd: NIODeadline,
        _ node: ShareNode, into records: inout [SharedRecord]
    ) -> Bool {
        let name = acknowledger.name(place, node)
        let (runs, damage) = decoder.decode(item) { view, deliveryCount, epoch in
            records.append(
                SharedRecord(
                    record: ConsumedRecord(view, name, epoch), deliveryCount: deliveryCount, place: place,
                    source: node.id, sessionNumber: node.number, lockEnd: lockEnd))
        }
        for run in runs { node.pending.add(run, of: place) }
        guard let damage else { return true }
        buffer.report(
            ClientError(
                .corruptData, "\(name) holds a batch that cannot be read and is given back: \(damage)",
                cause: damage))
        return false
    }

    // MARK: End

    func shutDown() {
        wakeTimer?.cancel()
        membership.stop()
        engine.close()
    }
}
