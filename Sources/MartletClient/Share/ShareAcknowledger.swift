import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// Tells the brokers what became of the records of a share group's member: with a fetch, or alone where there is none.
///
/// Acknowledgements are repeated only where the broker says that it could not write them down; after any other failure it
/// has them or gives the records out again. Confined to `engine.loop`, as is the ``ShareFetcher`` that owns it.
final class ShareAcknowledger {
    typealias Batches = ShareRequests.Batches
    typealias Completion = ShareNode.Completion

    /// What an answer means for the acknowledgements that it answers.
    struct Verdict {
        var results: [ShareAcknowledgementResult]
        /// The broker could not write these down at present, and may later.
        var unwritten: [SharePlace: ShareAcknowledgementResult] = [:]
    }

    /// Attempts to tell the same acknowledgements.
    struct Repetition {
        /// When the first one was made.
        fileprivate var start = NIODeadline.now()
        fileprivate var attempt = 1

        fileprivate var next: Repetition { Repetition(start: start, attempt: attempt + 1) }
    }

    /// For how long acknowledgements are repeated that the broker cannot write down, before it has said how long its locks
    /// last: no longer than they can be held.
    private static let usualLockTimeout = Duration.seconds(30)
    /// Longest wait for the answer to the end of a session; the broker ends it by itself with the connection.
    private static let endLimit = Duration.seconds(5)

    /// By broker, in order of their ids wherever the order can be seen.
    private var nodes: [BrokerID: ShareNode] = [:]
    private let engine: ClientEngine
    private let membership: ShareMembership
    private let buffer: ShareBuffer
    private let group: String
    /// A broker is free again.
    var onFree: (() -> Void)?

    init(engine: ClientEngine, membership: ShareMembership, buffer: ShareBuffer, group: String) {
        self.engine = engine
        self.membership = membership
        self.buffer = buffer
        self.group = group
    }

    var allNodes: [ShareNode] { nodes.values.sorted { $0.id < $1.id } }

    func node(_ id: BrokerID) -> ShareNode {
        if let node = nodes[id] { return node }
        let node = ShareNode(id)
        nodes[id] = node
        return node
    }

    // MARK: Inputs

    /// Tells the brokers what was said, without a fetch: the caller is busy with records that were here.
    func tell() {
        drain()
        for node in allNodes where !node.pending.isEmpty {
            if node.isBusy { node.tells = true } else { sendPending(node) }
        }
    }

    /// Sends all acknowledgements and resolves with what became of those and of others that are on their way.
    func commit(_ reply: Reply<[ShareAcknowledgementResult]>) {
        let gathering = Gathering(reply)
        gathering.add(drain())
        for node in allNodes {
            for delivery in node.deliveries { gathering.include { delivery.listen($0) } }
            guard !node.pending.isEmpty else { continue }
            let (batches, number) = (node.pending.take(), node.number)
            gathering.include { finish in
                let done = node.begin(finish)
                node.whenIdle {
                    guard node.number == number else { return done(self.lost(batches, node)) }
                    self.send(batches, node, completion: done)
                }
            }
        }
        gathering.seal()
    }

    /// Sends all acknowledgements with the end of every session, which frees whatever else is locked. What is on its way
    /// comes first, also if it has to be sent again: the end of the session would make it void.
    func endSessions(_ reply: Reply<[ShareAcknowledgementResult]>) {
        let gathering = Gathering(reply)
        gathering.add(drain())
        for node in allNodes {
            node.tells = false
            for delivery in node.deliveries { gathering.include { delivery.listen($0) } }
            gathering.include { done in
                node.whenSettled {
                    let batches = node.pending.take()
                    guard node.session.isOpen else { return done(self.lost(batches, node)) }
                    self.send(batches, node, isFinal: true, completion: done)
                }
            }
        }
        gathering.seal()
    }

    /// Gives the locks of these records their whole time again. What becomes of it is for the caller alone: a record whose
    /// lock is renewed is still to be acknowledged.
    func renew(_ records: [SharedRecord], _ reply: Reply<[ShareAcknowledgementResult]>) {
        let gathering = Gathering(reply)
        for (source, given) in Dictionary(grouping: records, by: \.source).sorted(by: { $0.key < $1.key }) {
            guard let node = nodes[source] else { continue }
            var renewals = ShareAcknowledgements()
            var latest: [SharePlace: Int64] = [:]
            for record in given.sorted(by: { $0.offset < $1.offset }) {
                let offset = record.offset.rawValue
                // The same record may have been named twice.
                guard latest.updateValue(offset, forKey: record.place) != offset else { continue }
                renewals.add(ShareRun(first: offset, last: offset, word: .renew), of: record.place)
            }
            let batches = renewals.take()
            let isCurrent = given.allSatisfy { $0.sessionNumber == node.number }
            let number = node.number
            gathering.include { done in
                node.whenIdle {
                    guard isCurrent, node.number == number else {
                        return done(self.lost(batches, node, isRenewal: true))
                    }
                    self.send(batches, node, isRenewal: true, completion: done)
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

    // MARK: Sending

    /// Sorts what was said by broker.
    ///
    /// - Returns: What cannot be told any more, because the locks are gone with their session. It is noted.
    @discardableResult func drain() -> [ShareAcknowledgementResult] {
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
            for (place, runs) in (gone[source]?.take() ?? [:]).sorted(by: { $0.key < $1.key }) {
                guard let name = names[place] else { continue }
                results.append(result(name, runs, Self.lostLock(name)))
            }
        }
        note(results)
        return results
    }

    func sendPending(_ node: ShareNode) {
        node.tells = false
        let batches = node.pending.take()
        guard !batches.isEmpty else { return }
        send(batches, node, completion: node.begin())
    }

    /// Ends the session with a broker that has given out nothing about which there is anything to say.
    func endSession(_ node: ShareNode) { send([:], node, isFinal: true) { _ in } }

    private func send(
        _ batches: Batches, _ node: ShareNode, isFinal: Bool = false, isRenewal: Bool = false,
        repetition: Repetition = Repetition(), completion: @escaping Completion
    ) {
        guard node.session.isOpen else { return completion(lost(batches, node, isRenewal: isRenewal)) }
        node.occupy()
        let made = ShareRequests.acknowledge(
            group, membership.memberID, epoch: isFinal ? ShareSession.finalEpoch : node.session.epoch,
            batches, isRenewal: isRenewal)
        engine.request(
            ShareAcknowledgeRequest.self, to: .broker(node.id), purpose: .data,
            timeout: isFinal ? Self.endLimit : nil
        ) { _ in
            made
        } completion: { result in
            let verdict = self.judge(result, batches, node, isFinal: isFinal, isRenewal: isRenewal)
            self.settle(
                verdict, batches, node, isRenewal: isRenewal,
                repetition: isFinal ? nil : repetition, completion: completion)
        }
    }

    /// Notes what became of acknowledgements, and sends again, after a pause, what the broker could not write down.
    ///
    /// - Parameter repetition: `nil`: nothing is sent again.
    func settle(
        _ verdict: Verdict, _ batches: Batches, _ node: ShareNode, isRenewal: Bool = false,
        repetition: Repetition? = Repetition(), completion: @escaping Completion
    ) {
        var verdict = verdict
        var next: (repetition: Repetition, pause: TimeAmount)?
        let pause = repetition.map { TimeAmount(engine.retryBackoff.pause(after: $0.attempt)) }
        let limit = TimeAmount(buffer.lockTimeout ?? Self.usualLockTimeout)
        if let repetition, let pause, .now() + pause < repetition.start + limit {
            next = (repetition.next, pause)
        } else {
            verdict.results += verdict.unwritten.sorted { $0.key < $1.key }.map(\.value)
            verdict.unwritten = [:]
        }
        let outcome = verdict.results
        note(outcome, isRenewal: isRenewal)
        free(node)
        guard let next, !verdict.unwritten.isEmpty else { return completion(outcome) }
        let number = node.number
        let rest = batches.filter { verdict.unwritten[$0.key] != nil }
        engine.loop.assumeIsolated().scheduleTask(in: next.pause) {
            node.whenIdle {
                guard node.number == number else {
                    return completion(outcome + self.lost(rest, node, isRenewal: isRenewal))
                }
                self.send(rest, node, isRenewal: isRenewal, repetition: next.repetition) { completion(outcome + $0) }
            }
        }
    }

    private func free(_ node: ShareNode) {
        node.release()
        if node.tells, !node.isBusy { sendPending(node) }
        // Never inside a pump that may be going on.
        engine.loop.assumeIsolated().execute { self.onFree?() }
    }

    // MARK: Answers

    private func judge(
        _ result: Result<Answer<ShareAcknowledgeResponse>, ClientError>, _ batches: Batches,
        _ node: ShareNode, isFinal: Bool, isRenewal: Bool
    ) -> Verdict {
        let response: ShareAcknowledgeResponse
        switch result {
        case .failure(let error) where isRenewal && error.code == .invalidArgument:
            // Not sent: the version that the broker speaks cannot say it.
            let error = ClientError(
                .unsupportedByBroker,
                "broker \(node.id) renews no locks (KIP-1222, ShareAcknowledge version 2, Kafka 4.2); raise "
                    + "share.record.lock.duration.ms of the group", cause: error)
            return Verdict(results: refused(batches, node) { _ in error })
        case .failure(let error):
            return lost(batches, node, to: error)
        case .success(let answer) where answer.response.errorCode != 0:
            let error = ClientError.broker(
                ErrorCode(rawValue: answer.response.errorCode), "acknowledgements in share group '\(group)'",
                detail: answer.response.errorMessage)
            return lost(batches, node, to: error)
        case .success(let answer):
            response = answer.response
        }
        node.failureCount = 0
        if response.acquisitionLockTimeoutMs > 0 {
            buffer.setLockTimeout(.milliseconds(Int64(response.acquisitionLockTimeoutMs)))
        }
        for endpoint in response.nodeEndpoints {
            engine.add(nodeID: endpoint.nodeID, host: endpoint.host, port: endpoint.port, rack: endpoint.rack)
        }
        var errors: [SharePlace: ClientError?] = [:]
        for topic in response.responses {
            for item in topic.partitions {
                let place = SharePlace(topicID: topic.topicID, partition: item.partitionIndex)
                errors[place] = .some(error(item.errorCode, item.errorMessage, place, node))
                guard ErrorCode(rawValue: item.errorCode) == .notLeaderOrFollower else { continue }
                _ = engine.hint(
                    leader: item.currentLeader.leaderID, epoch: item.currentLeader.leaderEpoch,
                    of: name(place, node))
            }
        }
        let verdict = sort(batches, node, errors)
        if isFinal { lose(node) } else { node.session.advance() }
        return verdict
    }

    /// What a broker's code for the acknowledgements of one partition means; `nil`: it has noted them.
    func error(_ code: Int16, _ detail: String?, _ place: SharePlace, _ node: ShareNode) -> ClientError? {
        guard code != 0 else { return nil }
        return .broker(ErrorCode(rawValue: code), "acknowledgement of \(name(place, node))", detail: detail)
    }

    /// - Parameter errors: of the partitions in the answer; what it leaves out is not acknowledged.
    func sort(_ batches: Batches, _ node: ShareNode, _ errors: [SharePlace: ClientError?]) -> Verdict {
        var verdict = Verdict(results: [])
        for (place, runs) in batches.sorted(by: { $0.key < $1.key }) {
            let name = name(place, node)
            let result = result(name, runs, errors[place] ?? Self.unanswered(name, node))
            switch result.error?.brokerCode {
            case .coordinatorLoadInProgress, .coordinatorNotAvailable, .notCoordinator:
                verdict.unwritten[place] = result
            case _: verdict.results.append(result)
            }
        }
        if errors.values.contains(where: { $0?.isRetriable == true }) { engine.refreshMetadata() }
        return verdict
    }

    private static func unanswered(_ partition: TopicPartition, _ node: ShareNode) -> ClientError {
        ClientError(
            .protocolViolation,
            "broker \(node.id) did not say what became of the acknowledgements for \(partition); the records may come "
                + "again")
    }

    func name(_ place: SharePlace, _ node: ShareNode) -> TopicPartition {
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

    private func refused(_ batches: Batches, _ node: ShareNode, _ error: (TopicPartition) -> ClientError)
        -> [ShareAcknowledgementResult]
    {
        batches.sorted { $0.key < $1.key }.map { place, runs in
            let name = name(place, node)
            return result(name, runs, error(name))
        }
    }

    // MARK: Loss

    /// The session that these belong to is over already.
    private func lost(_ batches: Batches, _ node: ShareNode, isRenewal: Bool = false)
        -> [ShareAcknowledgementResult]
    {
        let results = refused(batches, node, Self.lostLock)
        note(results, isRenewal: isRenewal)
        return results
    }

    /// The session ends with these on their way; nobody knows whether the broker has them.
    func lost(_ batches: Batches, _ node: ShareNode, to error: ClientError) -> Verdict {
        let verdict = Verdict(results: refused(batches, node) { _ in error })
        lose(node)
        node.back(off: engine.retryBackoff)
        return verdict
    }

    private static func lostLock(_ partition: TopicPartition) -> ClientError {
        ClientError(
            .rebalanced, "the session with the leader of \(partition) is over; its records come again",
            isRetriable: true)
    }

    /// The session is over: what was locked comes again, here or elsewhere.
    private func lose(_ node: ShareNode) {
        let results = refused(node.pending.take(), node, Self.lostLock)
        node.session.reset()
        node.number += 1
        node.heldCount = 0
        buffer.drop(node.id, before: node.number)
        note(results)
    }

    /// Keeps results for the polling task; a refusal is worth a line, since it means that work is done twice.
    private func note(_ results: [ShareAcknowledgementResult], isRenewal: Bool = false) {
        // What becomes of a renewal is told to whoever asked for it; the records are still held.
        guard !isRenewal else { return }
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
}
