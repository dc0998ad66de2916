import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletTransport
import NIOCore

/// Fetches the records of a share group's member and tells the brokers what became of them: one session, and one request
/// at a time, per broker. Brokers are asked for records only while somebody polls and none are left: a record that waits
/// here is locked to others.
///
/// Acknowledgements go along with the next fetch from their broker, or alone where there is none. They are repeated only
/// where the broker says that it could not write them down; after any other failure it has them or gives the records out
/// again.
// SAFETY: confined to `engine.loop`; every entry from elsewhere goes through `loop.execute`.
final class ShareFetcher: @unchecked Sendable {
    /// One broker and what it has given out.
    private final class Node {
        let id: BrokerID
        var session = ShareSession()
        /// Counts the sessions, so that acknowledgements of a lost one are told from those of its successor.
        var number = 0
        var pending = ShareAcknowledgements()
        /// Records given out in the present session about which nothing was said.
        var heldCount = 0
        /// Topics of the present session; the metadata may have forgotten one whose records are still here.
        var names: [UniversalID: String] = [:]
        var isBusy = false
        /// What is pending goes out alone as soon as the broker is free.
        var tells = false
        var notBefore = NIODeadline.uptimeNanoseconds(0)
        var failureCount = 0
        /// Acknowledgements taken out of `pending` whose fate is not known yet.
        var deliveries: [Delivery] = []
        /// What is to be done once the request under way is answered.
        var afterwards: [() -> Void] = []

        init(_ id: BrokerID) { self.id = id }
    }

    /// Acknowledgements on their way, or waiting for their broker to be free.
    private final class Delivery {
        var listeners: [Completion] = []
    }

    private typealias Batches = ShareRequests.Batches
    private typealias Completion = ([ShareAcknowledgementResult]) -> Void

    /// How often acknowledgements are sent that the broker cannot write down; the locks go on ending meanwhile.
    private static let attemptLimit = 5
    /// Fetch request timeouts beyond the broker's own wait.
    private static let graceTime = Duration.seconds(10)

    let engine: ClientEngine
    let membership: ShareMembership
    private let buffer: ShareBuffer
    private let configuration: ShareConsumerConfiguration
    private let decoder: ShareDecoder
    private var nodes: [BrokerID: Node] = [:]
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
    }

    func start() {
        membership.onChange = { [weak self] in self?.pump() }
        engine.onMetadata = { [weak self] in
            self?.membership.metadataChanged()
            self?.pump()
        }
    }

    private var loop: any EventLoop { engine.loop }
    private var group: String { configuration.groupID }

    // MARK: Inputs

    /// Whether a poll waits for records.
    func want(_ isWanted: Bool) {
        self.isWanted = isWanted
        guard isWanted else { return }
        membership.polled()
        pump()
    }

    /// Tells the brokers what was said, without a fetch: the caller is busy with records that were here.
    func tell() {
        drain()
        for node in nodes.values where !node.pending.isEmpty {
            if node.isBusy { node.tells = true } else { sendPending(node) }
        }
    }

    /// Sends all acknowledgements and resolves with what became of those and of others that are on their way.
    func commit(_ reply: Reply<[ShareAcknowledgementResult]>) {
        let gathering = Gathering(reply)
        gathering.add(drain())
        for node in nodes.values {
            for delivery in node.deliveries { gathering.include { delivery.listeners.append($0) } }
            guard !node.pending.isEmpty else { continue }
            let (batches, number) = (node.pending.take(), node.number)
            gathering.include { finish in
                let done = begin(node, finish)
                whenIdle(node) {
                    guard node.number == number else { return done(self.lost(batches, node)) }
                    self.acknowledge(batches, node, completion: done)
                }
            }
        }
        gathering.seal()
    }

    /// Sends all acknowledgements with the end of every session, which frees whatever else is locked.
    func endSessions(_ reply: Reply<[ShareAcknowledgementResult]>) {
        isWanted = false
        let gathering = Gathering(reply)
        gathering.add(drain())
        for node in nodes.values {
            gathering.include { done in
                whenIdle(node) {
                    let batches = node.pending.take()
                    guard node.session.isOpen else { return done(self.lost(batches, node)) }
                    self.acknowledge(batches, node, isFinal: true, completion: done)
                }
            }
        }
        gathering.seal()
    }

    /// Gives the locks of these records their whole time again.
    func renew(_ records: [SharedRecord], _ reply: Reply<[ShareAcknowledgementResult]>) {
        let gathering = Gathering(reply)
        for (source, given) in Dictionary(grouping: records, by: \.source) {
            guard let node = nodes[source] else { continue }
            var renewals = ShareAcknowledgements()
            for record in given.sorted(by: { $0.offset < $1.offset }) {
                let offset = record.offset.rawValue
                renewals.add(ShareRun(first: offset, last: offset, word: .renew), of: record.place)
            }
            let batches = renewals.take()
            let isCurrent = given.allSatisfy { $0.sessionNumber == node.number }
            let number = node.number
            gathering.include { done in
                whenIdle(node) {
                    guard isCurrent, node.number == number else { return done(self.lost(batches, node)) }
                    self.acknowledge(batches, node, isRenewal: true, completion: done)
                }
            }
        }
        gathering.seal()
    }

    /// Answers of several brokers on their way.
    private final class Gathering {
        private var count = 1
        private var results: [ShareAcknowledgementResult] = []
        private let reply: Reply<[ShareAcknowledgementResult]>

        init(_ reply: Reply<[ShareAcknowledgementResult]>) { self.reply = reply }

        func add(_ part: [ShareAcknowledgementResult]) { results += part }

        func include(_ start: (@escaping Completion) -> Void) {
            count += 1
            start { part in
                self.results += part
                self.seal()
            }
        }

        func seal() {
            count -= 1
            if count == 0 { reply.succeed(results) }
        }
    }

    // MARK: Acknowledging

    /// Sorts what was said by broker.
    ///
    /// - Returns: What cannot be told any more, because the locks are gone with their session. It is noted.
    @discardableResult private func drain() -> [ShareAcknowledgementResult] {
        var gone: [BrokerID: ShareAcknowledgements] = [:]
        var names: [SharePlace: TopicPartition] = [:]
        for (record, word) in buffer.takeAnswered() {
            let offset = record.offset.rawValue
            if let node = nodes[record.source], node.number == record.sessionNumber {
                node.heldCount -= 1
                if let word {
                    node.pending.add(ShareRun(first: offset, last: offset, word: word), of: record.place)
                }
            } else if let word {
                names[record.place] = record.topicPartition
                gone[record.source, default: ShareAcknowledgements()].add(
                    ShareRun(first: offset, last: offset, word: word), of: record.place)
            }
        }
        var results: [ShareAcknowledgementResult] = []
        for source in gone.keys.sorted() {
            for (place, runs) in gone[source]?.take() ?? [:] {
                guard let name = names[place] else { continue }
                results.append(result(name, runs, Self.lostLock(name)))
            }
        }
        note(results)
        return results
    }

    /// Notes that acknowledgements are on their way; the result is to be called with what became of them.
    private func begin(_ node: Node, _ completion: @escaping Completion = { _ in }) -> Completion {
        let delivery = Delivery()
        node.deliveries.append(delivery)
        return { results in
            node.deliveries.removeAll { $0 === delivery }
            for listener in delivery.listeners { listener(results) }
            completion(results)
        }
    }

    private func whenIdle(_ node: Node, _ work: @escaping () -> Void) {
        if node.isBusy { node.afterwards.append(work) } else { work() }
    }

    private func finished(_ node: Node) {
        node.isBusy = false
        let next = node.afterwards
        node.afterwards = []
        // The first makes the node busy again; the others wait anew.
        for work in next { whenIdle(node, work) }
        if node.tells, !node.isBusy { sendPending(node) }
        // Never inside a pump that may be going on.
        loop.assumeIsolated().execute { self.pump() }
    }

    private func sendPending(_ node: Node) {
        node.tells = false
        let batches = node.pending.take()
        guard !batches.isEmpty else { return }
        acknowledge(batches, node, completion: begin(node))
    }

    private func acknowledge(
        _ batches: Batches, _ node: Node, isFinal: Bool = false, isRenewal: Bool = false, attempt: Int = 1,
        completion: @escaping Completion
    ) {
        guard node.session.isOpen else { return completion(lost(batches, node)) }
        node.isBusy = true
        let made = ShareRequests.acknowledge(
            group, membership.memberID, epoch: isFinal ? ShareSession.finalEpoch : node.session.epoch,
            batches,
            isRenewal: isRenewal)
        engine.request(ShareAcknowledgeRequest.self, to: .broker(node.id), purpose: .data) { _ in
            made
        } completion: { result in
            var (outcome, unwritten) = self.judge(
                result, batches, node, isFinal: isFinal, isRenewal: isRenewal)
            if isFinal || attempt >= Self.attemptLimit {
                outcome += unwritten.sorted { $0.key < $1.key }.map(\.value)
                unwritten = [:]
            }
            self.note(outcome)
            self.finished(node)
            guard !unwritten.isEmpty else { return completion(outcome) }
            let (number, done, places) = (node.number, outcome, Set(unwritten.keys))
            let again = batches.filter { places.contains($0.key) }
            self.loop.assumeIsolated().scheduleTask(
                in: TimeAmount(self.engine.retryBackoff.pause(after: attempt))
            ) {
                self.whenIdle(node) {
                    guard node.number == number else { return completion(done + self.lost(again, node)) }
                    self.acknowledge(again, node, isRenewal: isRenewal, attempt: attempt + 1) {
                        completion(done + $0)
                    }
                }
            }
        }
    }

    /// What an answer means. `unwritten`: the broker could not write these down at present, and may later.
    private func judge(
        _ result: Result<Answer<ShareAcknowledgeResponse>, ClientError>, _ batches: Batches, _ node: Node,
        isFinal: Bool, isRenewal: Bool
    ) -> (results: [ShareAcknowledgementResult], unwritten: [SharePlace: ShareAcknowledgementResult]) {
        let response: ShareAcknowledgeResponse
        switch result {
        case .failure(let error) where isRenewal && error.code == .invalidArgument:
            // Not sent: the version that the broker speaks cannot say it.
            let error = ClientError(
                .unsupportedByBroker,
                "broker \(node.id) renews no locks (KIP-1222, ShareAcknowledge version 2, Kafka 4.2); raise "
                    + "share.record.lock.duration.ms of the group", cause: error)
            return (refused(batches, node, error), [:])
        case .failure(let error):
            return (lost(batches, node, to: error), [:])
        case .success(let answer) where answer.response.errorCode != 0:
            let error = ClientError.broker(
                ErrorCode(rawValue: answer.response.errorCode), "acknowledgements in share group '\(group)'",
                detail: answer.response.errorMessage)
            return (lost(batches, node, to: error), [:])
        case .success(let answer):
            response = answer.response
        }
        node.failureCount = 0
        var errors: [SharePlace: ClientError] = [:]
        for topic in response.responses {
            for item in topic.partitions where item.errorCode != 0 {
                let place = SharePlace(topicID: topic.topicID, partition: item.partitionIndex)
                errors[place] = .broker(
                    ErrorCode(rawValue: item.errorCode), "acknowledgement of \(name(place, node))",
                    detail: item.errorMessage)
            }
        }
        var results: [ShareAcknowledgementResult] = []
        var unwritten: [SharePlace: ShareAcknowledgementResult] = [:]
        for (place, runs) in batches.sorted(by: { $0.key < $1.key }) {
            let result = self.result(name(place, node), runs, errors[place])
            switch result.error?.brokerCode {
            case .coordinatorLoadInProgress, .coordinatorNotAvailable, .notCoordinator:
                unwritten[place] = result
            case _: results.append(result)
            }
        }
        if errors.values.contains(where: { $0.isRetriable }) { engine.refreshMetadata() }
        if isFinal { lose(node) } else { node.session.advance() }
        return (results, unwritten)
    }

    private func name(_ place: SharePlace, _ node: Node) -> TopicPartition {
        TopicPartition(
            node.names[place.topicID] ?? engine.metadata.names[place.topicID] ?? place.topicID.description,
            place.partition)
    }

    private func result(_ name: TopicPartition, _ runs: [ShareRun], _ error: ClientError?)
        -> ShareAcknowledgementResult
    {
        ShareAcknowledgementResult(
            topicPartition: name, offsets: runs.map { Offset($0.first)...Offset($0.last) }, error: error)
    }

    private func refused(_ batches: Batches, _ node: Node, _ error: ClientError)
        -> [ShareAcknowledgementResult]
    {
        batches.sorted { $0.key < $1.key }.map { place, runs in result(name(place, node), runs, error) }
    }

    /// The session that these belong to is over already.
    private func lost(_ batches: Batches, _ node: Node) -> [ShareAcknowledgementResult] {
        let results = batches.sorted { $0.key < $1.key }.map { place, runs in
            let name = name(place, node)
            return result(name, runs, Self.lostLock(name))
        }
        note(results)
        return results
    }

    /// The session ends with these on their way; nobody knows whether the broker has them.
    private func lost(_ batches: Batches, _ node: Node, to error: ClientError) -> [ShareAcknowledgementResult]
    {
        let results = refused(batches, node, error)
        lose(node)
        back(off: node)
        return results
    }

    private static func lostLock(_ partition: TopicPartition) -> ClientError {
        ClientError(
            .rebalanced, "the session with the leader of \(partition) is over; its records come again",
            isRetriable: true)
    }

    /// The session is over: what was locked comes again, here or elsewhere.
    private func lose(_ node: Node) {
        let pending = node.pending.take()
        let results = pending.sorted { $0.key < $1.key }.map { place, runs in
            let name = name(place, node)
            return result(name, runs, Self.lostLock(name))
        }
        node.session.reset()
        node.number += 1
        node.heldCount = 0
        buffer.drop(node.id, before: node.number)
        note(results)
    }

    private func back(off node: Node) {
        node.failureCount += 1
        node.notBefore = .now() + TimeAmount(engine.retryBackoff.pause(after: node.failureCount))
    }

    /// Keeps results for the polling task; a refusal is worth a line, since it means that work is done twice.
    private func note(_ results: [ShareAcknowledgementResult]) {
        buffer.note(results)
        for result in results {
            guard let error = result.error else { continue }
            engine.logger.notice(
                "acknowledgements were refused; the records come again",
                metadata: [
                    "group": "\(group)", "partition": "\(result.topicPartition)", "cause": "\(error.message)",
                ])
        }
    }

    // MARK: Pump

    /// There may be something to fetch.
    func pump() {
        loop.preconditionInEventLoop()
        guard !engine.isClosed, buffer.isReading else { return }
        drain()
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
        for (id, node) in nodes where byLeader[id] == nil && !node.isBusy {
            if !node.pending.isEmpty {
                sendPending(node)
            } else if node.session.isOpen, node.heldCount <= 0 {
                acknowledge([:], node, isFinal: true) { _ in }
            }
        }
        guard isWanted, !buffer.hasReady else { return }
        for (leader, places) in byLeader {
            let node = nodes[leader] ?? Node(leader)
            nodes[leader] = node
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

    private func fetch(_ places: Set<SharePlace>, _ node: Node) {
        // What this broker does not lead for us any more is acknowledged by a request of its own.
        if node.session.isOpen, !node.pending.places.isSubset(of: places) { return sendPending(node) }
        node.isBusy = true
        let batches = node.session.isOpen ? node.pending.take() : [:]
        let plan = node.session.plan(places)
        if plan.epoch == ShareSession.openingEpoch { node.names = [:] }
        for place in plan.added { node.names[place.topicID] = engine.metadata.names[place.topicID] }
        let made = ShareRequests.fetch(plan, batches, membership.memberID, configuration)
        let done = batches.isEmpty ? nil : begin(node)
        engine.request(
            ShareFetchRequest.self, to: .broker(node.id), purpose: .data,
            timeout: max(configuration.client.requestTimeout, configuration.fetchMaximumWait + Self.graceTime)
        ) { _ in
            made
        } completion: { result in
            let outcome: [ShareAcknowledgementResult]
            switch result {
            case .success(let answer) where answer.response.errorCode == 0:
                node.session.fetched()
                node.failureCount = 0
                outcome = self.take(answer.response, batches, node)
            case .success(let answer):
                outcome = self.failed(
                    .broker(
                        ErrorCode(rawValue: answer.response.errorCode),
                        "fetch in share group '\(self.group)'",
                        detail: answer.response.errorMessage), batches, node)
            case .failure(let error):
                outcome = self.failed(error, batches, node)
            }
            self.note(outcome)
            self.finished(node)
            done?(outcome)
        }
    }

    /// - Returns: What became of the acknowledgements that went along.
    private func failed(_ error: ClientError, _ batches: Batches, _ node: Node)
        -> [ShareAcknowledgementResult]
    {
        let outcome = lost(batches, node, to: error)
        guard error.code != .closed else { return outcome }
        engine.refreshMetadata()
        if error.isRetriable {
            engine.logger.debug(
                "share fetch failed", metadata: ["broker": "\(node.id)", "error": "\(error)"])
        } else {
            buffer.report(error)
        }
        return outcome
    }

    /// - Returns: What became of the acknowledgements that went along.
    private func take(
        _ response: ShareFetchResponse, _ batches: Batches, _ node: Node
    ) -> [ShareAcknowledgementResult] {
        for endpoint in response.nodeEndpoints {
            engine.add(nodeID: endpoint.nodeID, host: endpoint.host, port: endpoint.port, rack: endpoint.rack)
        }
        let lock = Duration.milliseconds(Int64(response.acquisitionLockTimeoutMs))
        if lock > .zero { buffer.setLockTimeout(lock) }
        let lockEnd = lock > .zero ? NIODeadline.now() + TimeAmount(lock) : .distantFuture
        var errors: [SharePlace: ClientError] = [:]
        var records: [SharedRecord] = []
        for topic in response.responses {
            for item in topic.partitions {
                let place = SharePlace(topicID: topic.topicID, partition: item.partitionIndex)
                if item.acknowledgeErrorCode != 0 {
                    errors[place] = .broker(
                        ErrorCode(rawValue: item.acknowledgeErrorCode),
                        "acknowledgement of \(name(place, node))",
                        detail: item.acknowledgeErrorMessage)
                }
                let code = ErrorCode(rawValue: item.errorCode)
                if code == .none {
                    decode(item, place, lockEnd, node, into: &records)
                } else {
                    refused(code, item, place, node)
                }
            }
        }
        node.heldCount += records.count
        // The poll that waits gets these; the next one asks for more.
        if !records.isEmpty { isWanted = false }
        buffer.append(records)
        return batches.sorted { $0.key < $1.key }.map { place, runs in
            result(name(place, node), runs, errors[place])
        }
    }

    private func refused(
        _ code: ErrorCode, _ item: ShareFetchResponse.PartitionData, _ place: SharePlace, _ node: Node
    ) {
        let name = name(place, node)
        guard code.isRetriable || code == .fencedLeaderEpoch || code == .unknownLeaderEpoch else {
            back(off: node)
            return buffer.report(.broker(code, "fetch of \(name)", detail: item.errorMessage))
        }
        if engine.hint(leader: item.currentLeader.leaderID, epoch: item.currentLeader.leaderEpoch, of: name) {
            return
        }
        node.notBefore = .now() + TimeAmount(engine.retryBackoff.pause(after: 1))
        engine.refreshMetadata()
    }

    /// Takes the records of one partition, and says of the other offsets that were given what there is to say.
    private func decode(
        _ item: ShareFetchResponse.PartitionData, _ place: SharePlace, _ lockEnd: NIODeadline, _ node: Node,
        into records: inout [SharedRecord]
    ) {
        let name = name(place, node)
        let (runs, damage) = decoder.decode(item) { view, deliveryCount, epoch in
            records.append(
                SharedRecord(
                    record: ConsumedRecord(view, name, epoch), deliveryCount: deliveryCount, place: place,
                    source: node.id, sessionNumber: node.number, lockEnd: lockEnd))
        }
        for run in runs { node.pending.add(run, of: place) }
        if let damage {
            buffer.report(
                ClientError(
                    .corruptData, "\(name) holds a batch that cannot be read and is given back: \(damage)",
                    cause: damage))
        }
    }

    // MARK: End

    func shutDown() {
        wakeTimer?.cancel()
        membership.stop()
        engine.close()
    }
}
