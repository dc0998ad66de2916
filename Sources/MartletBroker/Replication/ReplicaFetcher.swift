import Logging
import MartletKafkaProtocol
import MartletLogModel
import MartletReplication
import MartletTransport
import NIOCore

/// Fetches from one leader what the partitions of one loop follow there. Confined to the loop.
///
/// One request at a time is on its way, over one connection and in one fetch session (KIP-227), for all partitions that
/// have something to ask. The offsets in it acknowledge what is before them, so a request says exactly what the
/// partitions say at the moment at which it leaves, and an answer is handed on only to a partition that would still ask
/// the same. An answer that outlived its connection, its partition's stay here, or the state of its partition's log is
/// void.
///
/// What holds a partition back while others are fetched:
/// - it has nothing to ask: its own flush, a cut, missing metadata. It says when that is over (``wake()``); until then
///   requests wait at the leader for a moment only, since it cannot be taken along before they come back.
/// - the leader refused, or sent what cannot be used: ``Settings/refusalPause``.
/// - the leader has a newer epoch: nothing is asked in the old one again.
final class ReplicaFetcher {
    struct Settings {
        /// Longest time for which the leader holds a request that finds nothing (`replica.fetch.wait.max.ms`).
        var maxWait: TimeAmount = .milliseconds(500)
        /// Bytes of an answer, above a first batch (`replica.fetch.response.max.bytes`).
        var maxBytes = 10 * 1024 * 1024
        /// Bytes of a partition in an answer, above a first batch (`replica.fetch.max.bytes`).
        var partitionMaxBytes = 1024 * 1024
        /// Largest frame taken: an answer of `maxBytes` behind a first batch of any size that a producer may send
        /// (`socket.request.max.bytes`, 100 MiB).
        var responseByteLimit = 128 * 1024 * 1024
        /// For a partition that the leader refuses (`replica.fetch.backoff.ms`).
        var refusalPause: TimeAmount = .seconds(1)
        /// Between attempts to connect: the first pause, doubled up to the last.
        var firstReconnectPause: TimeAmount = .milliseconds(50)
        var lastReconnectPause: TimeAmount = .seconds(1)
        /// For an answer, beyond `maxWait`. Well below `replica.lag.time.max.ms`: a leader whose machine went down
        /// without a word must not cost its followers their place in the in-sync set when it is back.
        var answerLimit: TimeAmount = .seconds(10)

        init() {}
    }

    /// What the fetchers of a loop have in common.
    struct Context {
        let eventLoop: any EventLoop
        let nodeID: BrokerID
        let peers: any PeerNetwork
        let logger: Logger
        let brokerEpoch: () -> Int64
        let clusterID: String
        let random: RandomSource
        let settings: Settings
    }

    private enum Hold {
        case none
        /// Until then, or the partition has another leader epoch.
        case pause(until: NIODeadline, epoch: LeaderEpoch)
        /// The leader is ahead of this epoch.
        case fenced(LeaderEpoch)
    }

    private final class Entry {
        let key: PartitionKey
        let partition: any FollowedPartition
        var isGone = false
        var hold = Hold.none
        /// Since when it has had nothing to ask.
        var silentSince: NIODeadline?
        var wasAsked = false
        /// What the leader's last answer should have moved on from.
        var stale: ReplicaFetchSession.Position?
        /// It is no answer of records that `stale` belongs to.
        var mustMove = false
        /// It has had its turn.
        var wasServed = false
        /// Where a flaw was logged last: one line is enough.
        var reportedFlaw: Offset?

        init(_ partition: any FollowedPartition) {
            self.key = partition.followedID
            self.partition = partition
        }
    }

    private struct Question {
        let entry: Entry
        let fetch: ReplicaFetch
        let position: ReplicaFetchSession.Position
    }

    private enum Link {
        case none
        case pausing(Scheduled<Void>)
        case connecting
        case open(ClientConnection, version: Int16)
    }

    /// Fetch versions in which a follower says its broker epoch (KIP-903), up to the newest that is spoken here.
    private static let versions: ClosedRange<Int16> = 15...17
    /// Shortest wait at the leader while a partition is silent.
    private static let shortestWait: TimeAmount = .milliseconds(1)
    /// The same while no partition is silent but such that were never asked for: their logs are being opened.
    private static let openingWait: TimeAmount = .milliseconds(50)
    /// A request that leaves out a silent partition waits for this part of the time for which it has been silent: a
    /// flush is noticed soon after its end, and a silence without end costs a few dozen requests, not a stream of them.
    private static let silenceDivisor: Int64 = 4

    let leader: BrokerID
    private let context: Context
    private var logger: Logger
    private var address: BrokerSettings.Address?
    private var byKey: [PartitionKey: Entry] = [:]
    /// In the order in which they are asked for; may hold such that are gone.
    private var order: [Entry] = []
    private var link = Link.none
    /// Rises when a connection is begun or given up: whatever belongs to another number is void.
    private var attempt: UInt64 = 0
    private var failureCount = 0
    private var session = ReplicaFetchSession()
    /// What the request on its way asked.
    private var asked: [PartitionKey: Question]?
    private var isTurnScheduled = false
    private var alarm: Scheduled<Void>?
    private(set) var isClosed = false

    init(leader: BrokerID, at address: BrokerSettings.Address?, _ context: Context) {
        self.leader = leader
        self.address = address
        self.context = context
        self.logger = context.logger
        logger[metadataKey: "leader"] = "\(leader)"
    }

    private var eventLoop: any EventLoop { context.eventLoop }
    private var settings: Settings { context.settings }

    // MARK: Partitions

    var isEmpty: Bool { byKey.isEmpty }

    /// Follows the partition from now on; if it does so already, what held it back counts no longer.
    func add(_ partition: any FollowedPartition) {
        let key = partition.followedID
        if let entry = byKey[key], entry.partition === partition {
            entry.hold = .none
            entry.stale = nil
        } else {
            remove(key)
            let entry = Entry(partition)
            byKey[key] = entry
            order.append(entry)
            // Answers to who was here before are void, and the leader believes that they were heard.
            session.distrust(key)
        }
        wake()
    }

    func remove(_ key: PartitionKey) {
        guard let entry = byKey.removeValue(forKey: key) else { return }
        entry.isGone = true
        wake()
    }

    /// Some partition may have something to ask. Whatever calls within one turn of the loop makes one request.
    func wake() {
        guard !isClosed, !isTurnScheduled, asked == nil else { return }
        isTurnScheduled = true
        eventLoop.assumeIsolated().execute {
            self.isTurnScheduled = false
            self.takeTurn()
        }
    }

    /// What is known of the leader's address when a partition comes; nothing happens if that is no news.
    func located(at address: BrokerSettings.Address) {
        if address != self.address { moved(to: address) }
    }

    /// The leader registered anew: another address, or the old one that is worth an attempt again.
    func moved(to address: BrokerSettings.Address) {
        guard !isClosed else { return }
        let isElsewhere = address != self.address
        self.address = address
        if isElsewhere { failureCount = 0 }
        switch link {
        case .none: break
        case .pausing: dropLink()
        case .connecting, .open: if isElsewhere { dropLink() }
        }
        wake()
    }

    func close() {
        guard !isClosed else { return }
        isClosed = true
        for entry in order { entry.isGone = true }
        byKey = [:]
        order = []
        alarm?.cancel()
        alarm = nil
        dropLink()
    }

    // MARK: Connection

    private func connect() {
        guard let address else { return }
        attempt &+= 1
        link = .connecting
        let attempt = self.attempt
        var settings = ClientConnection.Settings(clientID: "broker-\(context.nodeID)-fetcher")
        settings.responseByteLimit = self.settings.responseByteLimit
        context.peers.connect(to: address, on: eventLoop, settings: settings) { result in
            self.connected(result, attempt)
        }
    }

    private func connected(_ result: Result<ClientConnection, ClientConnectionError>, _ attempt: UInt64) {
        guard attempt == self.attempt else {
            if case .success(let connection) = result { connection.close() }
            return
        }
        switch result {
        case .failure(let error):
            fail("\(error)")
        case .success(let connection):
            let version = connection.version(of: FetchRequest.self, limit: Self.versions.upperBound)
            guard connection.isOpen, let version, Self.versions.contains(version) else {
                connection.close()
                fail("it does not serve Fetch \(Self.versions) or has closed the connection")
                return
            }
            session = ReplicaFetchSession()
            link = .open(connection, version: version)
            connection.onClose = { error in
                if attempt == self.attempt { self.fail("\(error)") }
            }
            wake()
        }
    }

    /// Gives the connection up, with everything that was asked over it, and tries again after a pause.
    private func fail(_ cause: String) {
        if failureCount == 0 {
            logger.warning(
                "cannot fetch from the leader",
                metadata: ["address": "\(address.map { "\($0)" } ?? "unknown")", "cause": "\(cause)"])
        }
        dropLink()
        link = .pausing(
            eventLoop.assumeIsolated().scheduleTask(in: reconnectPause()) {
                self.link = .none
                self.wake()
            })
        failureCount += 1
    }

    private func dropLink() {
        attempt &+= 1
        asked = nil
        session = ReplicaFetchSession()
        let old = link
        link = .none
        switch old {
        case .none, .connecting: break
        case .pausing(let pause): pause.cancel()
        case .open(let connection, _): connection.close()
        }
    }

    /// Up to a quarter shorter by chance, so that the followers of a leader do not come back all at once.
    private func reconnectPause() -> TimeAmount {
        let first = settings.firstReconnectPause.nanoseconds
        let longest = settings.lastReconnectPause.nanoseconds
        let pause = min(longest, first << Int64(min(failureCount, 20)))
        var random = context.random
        return .nanoseconds(pause - Int64.random(in: 0...max(0, pause / 4), using: &random))
    }

    private func succeeded() {
        if failureCount > 0 { logger.info("fetching from the leader again") }
        failureCount = 0
    }

    // MARK: Request

    private struct Round {
        var questions: [Question] = []
        /// Longest wait at the leader.
        var wait: TimeAmount
        /// When the first pause of a partition ends.
        var firstPauseEnd: NIODeadline?
    }

    private func takeTurn() {
        guard !isClosed, asked == nil else { return }
        let now = eventLoop.now
        let round = gather(now)
        alarm?.cancel()
        alarm = nil
        guard !round.questions.isEmpty else {
            if let end = round.firstPauseEnd {
                alarm = eventLoop.assumeIsolated().scheduleTask(deadline: end) { self.wake() }
            }
            return
        }
        switch link {
        case .none: connect()
        case .pausing, .connecting: break
        case .open(let connection, let version): send(round, connection, version)
        }
    }

    /// What the partitions have to ask now.
    private func gather(_ now: NIODeadline) -> Round {
        order.removeAll { $0.isGone }
        var round = Round(wait: settings.maxWait)
        for entry in order {
            guard let fetch = entry.partition.nextReplicaFetch(), fetch.leader == leader else {
                round.wait = min(round.wait, wait(for: entry, now))
                continue
            }
            entry.silentSince = nil
            let position = ReplicaFetchSession.Position(
                leaderEpoch: fetch.leaderEpoch, offset: fetch.offset, lastFetchedEpoch: fetch.lastFetchedEpoch,
                logStart: entry.partition.followedLogStart)
            if isHeld(entry, fetch, position, now) {
                if case .pause(let end, _) = entry.hold {
                    round.firstPauseEnd = min(round.firstPauseEnd ?? end, end)
                    round.wait = min(round.wait, end - now)
                }
                continue
            }
            round.questions.append(Question(entry: entry, fetch: fetch, position: position))
        }
        return round
    }

    private func wait(for entry: Entry, _ now: NIODeadline) -> TimeAmount {
        let since = entry.silentSince ?? now
        entry.silentSince = since
        // Its records made work for it that goes first.
        if !entry.mustMove { entry.stale = nil }
        let part = TimeAmount.nanoseconds((now - since).nanoseconds / Self.silenceDivisor)
        return max(entry.wasAsked ? Self.shortestWait : Self.openingWait, part)
    }

    private func isHeld(
        _ entry: Entry, _ fetch: ReplicaFetch, _ position: ReplicaFetchSession.Position, _ now: NIODeadline
    ) -> Bool {
        if let stale = entry.stale {
            entry.stale = nil
            // Nothing came of the answer. Asking on would get the same one again, as fast as the network is.
            if stale.isSame(as: position) { pause(entry, fetch) }
        }
        switch entry.hold {
        case .none:
            return false
        case .pause(let end, let epoch) where now < end && fetch.leaderEpoch == epoch:
            return true
        case .fenced(let epoch) where fetch.leaderEpoch == epoch:
            return true
        case .pause, .fenced:
            entry.hold = .none
            return false
        }
    }

    private func pause(_ entry: Entry, _ fetch: ReplicaFetch) {
        entry.hold = .pause(until: eventLoop.now + settings.refusalPause, epoch: fetch.leaderEpoch)
    }

    private func send(_ round: Round, _ connection: ClientConnection, _ version: Int16) {
        let brokerEpoch = context.brokerEpoch()
        guard brokerEpoch >= 0 else {
            // A leader must be able to tell this process from the ones before it (KIP-903).
            fail("this broker is not registered")
            return
        }
        let turn = session.turn(round.questions.map { ($0.entry.key, $0.position) })
        var request = FetchRequest()
        request.clusterID = context.clusterID
        request.replicaState.replicaID = context.nodeID.rawValue
        request.replicaState.replicaEpoch = brokerEpoch
        request.maxWaitMs = Int32(clamping: (round.wait.nanoseconds + 999_999) / 1_000_000)
        request.minBytes = 1
        request.maxBytes = Int32(clamping: settings.maxBytes)
        request.sessionID = turn.id
        request.sessionEpoch = turn.epoch
        request.topics = topics(turn.changed)
        request.forgottenTopicsData = forgottenTopics(turn.forgotten)
        var asked: [PartitionKey: Question] = [:]
        asked.reserveCapacity(round.questions.count)
        for question in round.questions {
            question.entry.wasAsked = true
            asked[question.entry.key] = question
        }
        self.asked = asked
        let attempt = self.attempt
        connection.send(request, version: version, timeout: round.wait + settings.answerLimit) { result in
            self.answered(result, attempt)
        }
    }

    private func topics(
        _ positions: [(key: PartitionKey, position: ReplicaFetchSession.Position)]
    ) -> [FetchRequest.FetchTopic] {
        var topics: [FetchRequest.FetchTopic] = []
        for (key, position) in positions {
            if topics.last?.topicID != key.topicID {
                var topic = FetchRequest.FetchTopic()
                topic.topicID = key.topicID
                topics.append(topic)
            }
            var partition = FetchRequest.FetchPartition()
            partition.partition = key.partition.rawValue
            partition.currentLeaderEpoch = position.leaderEpoch.rawValue
            partition.fetchOffset = position.offset.rawValue
            partition.lastFetchedEpoch = position.lastFetchedEpoch?.rawValue ?? -1
            partition.logStartOffset = position.logStart.rawValue
            partition.partitionMaxBytes = Int32(clamping: settings.partitionMaxBytes)
            topics[topics.count - 1].partitions.append(partition)
        }
        return topics
    }

    private func forgottenTopics(_ keys: [PartitionKey]) -> [FetchRequest.ForgottenTopic] {
        var topics: [FetchRequest.ForgottenTopic] = []
        for key in keys {
            if topics.last?.topicID != key.topicID {
                var topic = FetchRequest.ForgottenTopic()
                topic.topicID = key.topicID
                topics.append(topic)
            }
            topics[topics.count - 1].partitions.append(key.partition.rawValue)
        }
        return topics
    }

    // MARK: Answer

    private struct Answer {
        let question: Question
        let data: FetchResponse.PartitionData
        /// It is the first of the response that has records.
        let isFirst: Bool
    }

    private func answered(_ result: Result<FetchResponse, ClientConnectionError>, _ attempt: UInt64) {
        guard attempt == self.attempt, let asked else { return }
        switch result {
        case .failure(let error):
            fail("\(error)")
        case .success(let response):
            self.asked = nil
            let code = ErrorCode(rawValue: response.errorCode)
            switch code {
            case .none:
                guard let answers = match(response, asked),
                    session.answered(id: response.sessionID, answersAll: answers.count == asked.count)
                else { return fail("its answer is not one to what was asked") }
                succeeded()
                for answer in answers where attempt == self.attempt { handOn(answer) }
                rotate()
            case .fetchSessionIDNotFound, .invalidFetchSessionEpoch, .fetchSessionTopicIDError:
                guard !session.isOpening else { return fail("it refuses to open a fetch session: \(code)") }
                logger.debug("fetch session lost", metadata: ["code": "\(code.rawValue)"])
                session.lost(code)
            case _:
                return fail("it refuses all fetches with error \(code.rawValue)")
            }
            wake()
        }
    }

    /// The parts of a response with the questions that they answer; nil if any of them answers none.
    private func match(_ response: FetchResponse, _ asked: [PartitionKey: Question]) -> [Answer]? {
        var open = asked
        var answers: [Answer] = []
        var anyRecords = false
        for topic in response.responses {
            for data in topic.partitions {
                let key = PartitionKey(topicID: topic.topicID, partition: PartitionIndex(data.partitionIndex))
                guard let question = open.removeValue(forKey: key) else { return nil }
                let hasRecords = (data.records?.readableBytes ?? 0) > 0
                answers.append(Answer(question: question, data: data, isFirst: hasRecords && !anyRecords))
                anyRecords = anyRecords || hasRecords
            }
        }
        return answers
    }

    /// Whoever got records waits behind the others. Leaders do so with what a session holds; this is for requests that
    /// name all. A large batch that did not fit behind others' records thereby comes first, where it always fits.
    private func rotate() {
        guard order.contains(where: \.wasServed) else { return }
        order = order.filter { !$0.wasServed } + order.filter(\.wasServed)
        for entry in order { entry.wasServed = false }
    }

    private func handOn(_ answer: Answer) {
        let (entry, fetch) = (answer.question.entry, answer.question.fetch)
        guard !entry.isGone else { return }
        guard entry.partition.nextReplicaFetch() == fetch else {
            // The partition has gone on. The leader believes that it knows what was told just now.
            session.distrust(entry.key)
            return
        }
        let data = answer.data
        switch ErrorCode(rawValue: data.errorCode) {
        case .none where data.divergingEpoch != FetchResponse.EpochEndOffset():
            let end = EpochEnd(
                epoch: LeaderEpoch(data.divergingEpoch.epoch), endOffset: Offset(data.divergingEpoch.endOffset))
            guard end.epoch >= .zero, end.epoch <= fetch.leaderEpoch, end.endOffset >= .zero else {
                return discard(entry, fetch, "the leader's epoch \(end.epoch) cannot end at \(end.endOffset)")
            }
            expectMove(answer.question, always: true)
            entry.partition.replicaFetchAnswered(fetch, .diverging(end), records: nil)
        case .none:
            handOnRecords(answer)
        case .offsetOutOfRange where data.logStartOffset >= 0:
            expectMove(answer.question, always: true)
            entry.partition.replicaFetchAnswered(
                fetch, .outOfRange(leaderLogStartOffset: Offset(data.logStartOffset)), records: nil)
        case .fencedLeaderEpoch:
            entry.hold = .fenced(fetch.leaderEpoch)
            entry.partition.replicaFetchAnswered(fetch, .refused(.fencedLeaderEpoch), records: nil)
        case let code:
            logger.debug(
                "fetch refused", metadata: ["partition": "\(entry.key)", "code": "\(code.rawValue)"])
            pause(entry, fetch)
            entry.partition.replicaFetchAnswered(fetch, .refused(code), records: nil)
        }
    }

    private func handOnRecords(_ answer: Answer) {
        let (entry, fetch) = (answer.question.entry, answer.question.fetch)
        var batches = FetchedBatches(answer.data.records, answering: fetch)
        if answer.isFirst { batches.requireWhole() }
        var highWatermark = Offset(max(0, answer.data.highWatermark))
        var logStart = Offset(max(0, answer.data.logStartOffset))
        if let flaw = batches.flaw {
            discard(entry, fetch, "\(flaw)")
            // Nothing in an answer with damage counts but what has a checksum.
            guard batches.sound != nil else { return }
            highWatermark = min(highWatermark, batches.end)
            logStart = min(logStart, answer.question.position.logStart)
        }
        if batches.sound != nil {
            entry.wasServed = true
            if batches.flaw == nil { expectMove(answer.question, always: false) }
        }
        entry.partition.replicaFetchAnswered(
            fetch, .records(highWatermark: highWatermark, logStartOffset: logStart), records: batches.sound)
    }

    /// The partition should not ask the same again after the answer that it is about to hear.
    private func expectMove(_ question: Question, always: Bool) {
        question.entry.stale = question.position
        question.entry.mustMove = always
    }

    /// Asks for the same again after a pause, marks included.
    private func discard(_ entry: Entry, _ fetch: ReplicaFetch, _ cause: String) {
        session.distrust(entry.key)
        pause(entry, fetch)
        guard entry.reportedFlaw != fetch.offset else { return }
        entry.reportedFlaw = fetch.offset
        logger.error(
            "fetched records cannot be used",
            metadata: ["partition": "\(entry.key)", "offset": "\(fetch.offset)", "cause": "\(cause)"])
    }
}

extension ReplicaFetchSession.Position {
    /// Apart from the log start, which is not what records continue.
    fileprivate func isSame(as other: Self) -> Bool {
        leaderEpoch == other.leaderEpoch && offset == other.offset && lastFetchedEpoch == other.lastFetchedEpoch
    }
}
