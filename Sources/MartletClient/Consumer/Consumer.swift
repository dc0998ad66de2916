import Logging
public import MartletLogModel
import NIOCore

/// Reads records: of partitions named by the caller (``assign(_:)``) or of topics shared with a group
/// (``subscribe(to:)``).
///
/// One task polls (or iterates ``records`` or ``batches``); the other methods may be called from any task.
/// Fetching ahead stops at ``ConsumerConfiguration/bufferBytes``, so a consumer that nobody polls stays small.
/// Heartbeats go on by themselves, but a member that does not poll for
/// ``ConsumerConfiguration/pollIntervalLimit`` leaves its group. Call ``close()`` at the end.
public final class Consumer: Sendable {
    private enum Mode: Equatable {
        case none
        case assigned
        case subscribed
        case closed
    }

    private struct State {
        var mode = Mode.none
        var nextAutoCommit = NIODeadline.uptimeNanoseconds(0)
        var lastAutoCommit: [TopicPartition: CommittedOffset] = [:]
    }

    private let configuration: ConsumerConfiguration
    private let engine: ClientEngine
    private let buffer: FetchBuffer
    private let fetcher: Fetcher
    private let membership: (any GroupMembership)?
    private let state = Guarded(State())

    /// - Throws: ``ClientError`` with code `invalidConfiguration`. Connecting happens on first use.
    public init(_ configuration: ConsumerConfiguration) throws(ClientError) {
        try configuration.validate()
        let engine = ClientEngine(configuration: configuration.client, role: "consumer")
        let buffer = FetchBuffer(byteLimit: configuration.bufferBytes)
        let fetcher = Fetcher(engine: engine, buffer: buffer, configuration: configuration)
        let membership = configuration.groupID.map { group -> any GroupMembership in
            switch configuration.groupProtocol {
            case .classic:
                ClassicGroupMembership(engine: engine, buffer: buffer, configuration: configuration, group: group)
            case .consumer:
                ConsumerGroupMembership(engine: engine, buffer: buffer, configuration: configuration, group: group)
            }
        }
        self.configuration = configuration
        self.engine = engine
        self.buffer = buffer
        self.fetcher = fetcher
        self.membership = membership
        engine.loop.execute {
            engine.onMetadata = { [weak fetcher, weak membership] in
                fetcher?.pump()
                membership?.metadataChanged()
            }
        }
    }

    deinit {
        // A consumer dropped without `close()` gives up its connections; its group notices by the silence.
        let (engine, buffer, fetcher) = (engine, buffer, fetcher)
        buffer.close()
        engine.loop.execute {
            fetcher.shutDown()
            engine.close()
        }
    }

    // MARK: Choosing what to read

    /// Reads exactly these partitions from these positions, replacing what was read before.
    public func assign(_ partitions: [TopicPartition: OffsetSpec]) async throws {
        try await assign(partitions.mapValues { StartPosition.position($0) })
    }

    /// Reads exactly these partitions from their committed positions, or by the reset policy without one.
    public func assign(committed partitions: [TopicPartition]) async throws {
        _ = try group("assign(committed:)")
        try await assign(
            Dictionary(partitions.map { ($0, StartPosition.committed) }, uniquingKeysWith: { $1 }))
    }

    private func assign(_ partitions: [TopicPartition: StartPosition]) async throws {
        for partition in partitions.keys {
            if let problem = TopicName.problem(partition.topic) {
                throw ClientError(.invalidArgument, problem)
            }
        }
        if try currentMode() == .subscribed { try await unsubscribe() }
        try setMode(.assigned)
        let removed = buffer.assignment.subtracting(partitions.keys)
        buffer.remove(removed)
        start(partitions, removing: removed)
    }

    /// Installs partitions and lets the fetcher begin.
    private func start(
        _ partitions: [TopicPartition: StartPosition], removing removed: Set<TopicPartition> = []
    ) {
        var starts: [TopicPartition: (cursor: PartitionCursor, version: Int, start: StartPosition)] = [:]
        for (partition, position) in partitions {
            var known: Offset?
            if case .position(.at(let offset)) = position { known = offset }
            let (cursor, version) = buffer.install(partition, at: known)
            starts[partition] = (cursor, version, position)
        }
        let (fetcher, added) = (fetcher, starts)
        engine.loop.execute {
            fetcher.remove(removed)
            fetcher.add(added)
        }
    }

    /// Joins the group and reads the share of these topics that the group gives to this member.
    public func subscribe(to topics: [String]) async throws {
        _ = try group("subscribe")
        if topics.isEmpty {
            try await unsubscribe()
            return
        }
        for topic in topics {
            if let problem = TopicName.problem(topic) { throw ClientError(.invalidArgument, problem) }
        }
        try subscribe(GroupSubscription(topics: Set(topics)))
    }

    /// Joins the group and reads the share that the group gives to this member of all topics whose whole name matches
    /// a regular expression, those that are created later included.
    ///
    /// The coordinator matches, in RE2 syntax; the consumer protocol alone can do so
    /// (``ConsumerConfiguration/groupProtocol``).
    /// - Throws: ``ClientError``: `invalidState` with the classic protocol. A pattern that the coordinator refuses is
    ///   reported by the next `poll`.
    public func subscribe(matching pattern: String) async throws {
        _ = try group("subscribe")
        guard configuration.groupProtocol == .consumer else {
            throw ClientError(
                .invalidState,
                "topic patterns are matched by the coordinator of a group of the consumer protocol; set groupProtocol "
                    + "to .consumer, or subscribe to topics by name")
        }
        guard !pattern.isEmpty else { throw ClientError(.invalidArgument, "the topic pattern is empty") }
        try subscribe(GroupSubscription(pattern: pattern))
    }

    private func subscribe(_ subscription: GroupSubscription) throws {
        guard let membership else { return }
        if try currentMode() == .assigned {
            let present = buffer.assignment
            buffer.remove(present)
            let fetcher = fetcher
            engine.loop.execute { fetcher.removeAll() }
        }
        try setMode(.subscribed)
        engine.loop.execute { membership.subscribe(subscription) }
    }

    /// Gives up all partitions, and the membership of the group if there is one.
    public func unsubscribe() async throws {
        if try currentMode() == .subscribed { await leaveGroup() }
        let present = buffer.assignment
        buffer.remove(present)
        let fetcher = fetcher
        engine.loop.execute { fetcher.removeAll() }
        try setMode(.none)
    }

    /// Commits, calls back and leaves. Not cancellable: the group would wait for the session to time out.
    private func leaveGroup() async {
        guard let membership else { return }
        _ = buffer.cancelSteps()
        let owned = buffer.assignment.sorted()
        if !owned.isEmpty { await giveUp(owned, isLost: false) }
        let loop = engine.loop
        await withCheckedContinuation { continuation in
            loop.execute { membership.leave { continuation.resume() } }
        }
    }

    /// Partitions read now.
    public var assignment: Set<TopicPartition> { buffer.assignment }

    private func currentMode() throws(ClientError) -> Mode {
        let mode = state.withLock { $0.mode }
        if mode == .closed { throw .closed("consumer") }
        return mode
    }

    private func setMode(_ mode: Mode) throws(ClientError) {
        let wasClosed = state.withLock { state in
            if state.mode == .closed { return true }
            state.mode = mode
            return false
        }
        if wasClosed { throw .closed("consumer") }
    }

    private func group(_ call: String) throws(ClientError) -> String {
        guard let group = configuration.groupID else {
            throw ClientError(.invalidState, "\(call) needs a group; set groupID in the configuration")
        }
        return group
    }

    // MARK: Reading

    /// The next records, as soon as there are any; empty if `timeout` passes first.
    ///
    /// - Parameter limit: Largest number of records returned; the rest stays for the next call.
    /// - Throws: ``ClientError``, `CancellationError`.
    public func poll(timeout: Duration = .seconds(1), limit: Int = 10_000) async throws -> [ConsumedRecord] {
        guard limit > 0, var batch = try await nextBatch(timeout: timeout) else { return [] }
        var records: [ConsumedRecord] = []
        while true {
            records.reserveCapacity(min(limit, records.count + batch.count))
            var iterator = batch.makeIterator()
            var taken = 0
            while records.count < limit, let record = iterator.next() {
                records.append(record)
                taken += 1
            }
            if taken < batch.count, records.count >= limit, let last = records.last, taken > 0 {
                batch.cursor.advance(
                    to: last.offset + 1, leaderEpoch: batch.leaderEpoch, version: batch.version)
                batch.records = iterator.rest
                batch.count -= taken
                buffer.putBack(batch)
            } else {
                finish(batch)
            }
            guard records.count < limit, let next = moreBatches() else { return records }
            batch = next
        }
    }

    /// The next batches of records, as soon as there are any; empty if `timeout` passes first. The fast form.
    public func pollBatches(timeout: Duration = .seconds(1)) async throws -> [ConsumedBatch] {
        guard let first = try await nextBatch(timeout: timeout) else { return [] }
        var batches = [first]
        finish(first)
        while let batch = moreBatches() {
            batches.append(batch)
            finish(batch)
        }
        return batches
    }

    /// All records, one by one, without end. A record counts as processed when the next one is asked for.
    public var records: ConsumerRecords { ConsumerRecords(consumer: self) }

    /// All records in batches, without end. A batch counts as processed when the next one is asked for.
    public var batches: ConsumerBatches { ConsumerBatches(consumer: self) }

    /// All records of the batch have been handed out.
    func finish(_ batch: ConsumedBatch) {
        batch.cursor.advance(to: batch.nextOffset, leaderEpoch: batch.leaderEpoch, version: batch.version)
    }

    /// The next batch, after whatever a rebalance demands; the position does not move yet.
    func nextBatch(timeout: Duration) async throws -> ConsumedBatch? {
        if try currentMode() == .none {
            throw ClientError(.invalidState, "nothing to read: call assign or subscribe before polling")
        }
        commitAutomatically()
        let deadline = NIODeadline.now() + TimeAmount(timeout)
        while true {
            try Task.checkCancellation()
            switch buffer.next() {
            case .step(let step):
                await perform(step)
            case .error(let error):
                throw error
            case .batch(let batch, let wake):
                if wake { wakeFetcher() }
                if batch.count > 0 { return batch }
                finish(batch)
            case .nothing:
                if buffer.isClosed { throw ClientError.closed("consumer") }
                let now = NIODeadline.now()
                guard now < deadline else { return nil }
                let reply = buffer.whenReady()
                let timer = engine.loop.scheduleTask(in: deadline - now) { reply.succeed(()) }
                defer {
                    timer.cancel()
                    buffer.forget(reply)
                }
                try await reply.value()
            }
        }
    }

    /// A further batch that is there already and needs nothing else to be done first.
    private func moreBatches() -> ConsumedBatch? {
        while case .batch(let batch, let wake)? = buffer.nextBatchOnly() {
            if wake { wakeFetcher() }
            if batch.count > 0 { return batch }
            finish(batch)
        }
        return nil
    }

    private func wakeFetcher() {
        let fetcher = fetcher
        engine.loop.execute { fetcher.pump() }
    }

    // MARK: Rebalance

    private func perform(_ step: RebalanceStep) async {
        switch step {
        case .revoke(let named, let isLost):
            // A loss is of everything, also of what was handed over while it came about.
            let partitions = isLost ? buffer.assignment.union(named).sorted() : named
            await giveUp(partitions, isLost: isLost)
            if let membership { engine.loop.execute { membership.revoked(partitions) } }
        case .assigned(let partitions):
            start(Dictionary(partitions.map { ($0, StartPosition.committed) }, uniquingKeysWith: { $1 }))
            await configuration.onRebalance?(.assigned(partitions))
            if let membership { engine.loop.execute { membership.assigned(partitions) } }
        }
    }

    private func giveUp(_ partitions: [TopicPartition], isLost: Bool) async {
        if !isLost, configuration.isAutoCommitEnabled {
            let positions = buffer.positions().filter { partitions.contains($0.key) }
            do {
                try await commit(positions)
            } catch {
                engine.logger.warning(
                    "commit before giving up partitions failed",
                    metadata: ["group": "\(configuration.groupID ?? "")", "error": "\(error)"])
            }
        }
        if !partitions.isEmpty {
            await configuration.onRebalance?(isLost ? .lost(partitions) : .revoked(partitions))
        }
        buffer.remove(partitions)
        let fetcher = fetcher
        engine.loop.execute { fetcher.remove(partitions) }
    }

    // MARK: Positions

    /// Moves to another position in a partition that is read now. Records fetched before are dropped.
    public func seek(_ partition: TopicPartition, to position: OffsetSpec) async throws {
        guard buffer.cursor(of: partition) != nil else {
            throw ClientError(.invalidState, "\(partition) is not read by this consumer; assign it first")
        }
        start([partition: .position(position)])
    }

    /// Offset of the next record to be handed out; `nil` while it is not known yet.
    public func position(of partition: TopicPartition) -> Offset? { buffer.position(of: partition) }

    /// Stops handing out records of these partitions; membership and positions stay.
    public func pause(_ partitions: some Sequence<TopicPartition>) { buffer.setPaused(true, partitions) }

    /// Goes on with partitions that were paused.
    public func resume(_ partitions: some Sequence<TopicPartition>) {
        buffer.setPaused(false, partitions)
        wakeFetcher()
    }

    /// Partitions paused now.
    public var paused: Set<TopicPartition> { buffer.paused }

    /// Where records are, by earliest, latest or time, for any partition. `nil`: no record that late.
    public func offsets(
        _ queries: [TopicPartition: OffsetSpec]
    ) async throws -> [TopicPartition: ListedOffset?] {
        try await engine.listOffsets(queries, isolation: configuration.isolation).mapValues { try $0.get() }
    }

    /// End of a partition as of its latest fetch (last stable offset with `readCommitted`); `nil` before the first.
    public func endOffset(of partition: TopicPartition) -> Offset? { buffer.endOffset(of: partition) }

    /// Goes back to the committed positions of all partitions read now, or by the reset policy where there is none.
    /// For work that is to be done again, such as a transaction that was rolled back.
    public func rewind() throws {
        _ = try group("rewind")
        start(Dictionary(buffer.assignment.map { ($0, StartPosition.committed) }, uniquingKeysWith: { $1 }))
    }

    /// Goes back to the committed positions of those partitions that are still read here; where nothing has been
    /// committed, to these offsets.
    func rewind(to offsets: [TopicPartition: Offset]) {
        let present = buffer.assignment
        start(offsets.filter { present.contains($0.key) }.mapValues { StartPosition.committedElse($0) })
    }

    // MARK: Committing

    /// Positions of all partitions that have one.
    var positions: [TopicPartition: CommittedOffset] { buffer.positions() }

    /// Membership under which positions are committed in a transaction, see
    /// ``ProducerTransaction/commitOffsets(_:as:)``. To be asked for right after the poll whose records count.
    ///
    /// - Throws: ``ClientError``: `rebalanced` while this consumer has no place in its group; poll again.
    public func groupMetadata() async throws -> ConsumerGroupMetadata {
        let group = try group("groupMetadata")
        guard try currentMode() == .subscribed, let membership else { return ConsumerGroupMetadata(groupID: group) }
        let identity = try await engine.loop.reply { $0.succeed(membership.commitIdentity) }
        guard identity.generation >= 0, !identity.memberID.isEmpty else {
            throw ClientError(
                .rebalanced, "this consumer has no place in group '\(group)' at present; poll again", isRetriable: true)
        }
        return ConsumerGroupMetadata(group, identity)
    }

    /// What a transaction commits for records that a poll has returned.
    ///
    /// The group may move on at any moment. Membership first: if that is old by the time of the commit, the commit is
    /// refused; if it is newer than the poll, the positions tell whether these partitions stayed ours.
    /// - Throws: ``ClientError``: `rebalanced` for records of a partition that is not read here any more, or anew.
    func claim(
        _ records: [ConsumedRecord]
    ) async throws -> (group: ConsumerGroupMetadata, positions: [TopicPartition: CommittedOffset]) {
        var lasts: [TopicPartition: Offset] = [:]
        for record in records {
            lasts[record.topicPartition] = max(lasts[record.topicPartition] ?? record.offset, record.offset)
        }
        let group = try await groupMetadata()
        let positions = positions.filter { lasts[$0.key] != nil }
        for (partition, last) in lasts where !(positions[partition].map { $0.offset > last } ?? false) {
            throw ClientError(
                .rebalanced, "the group took \(partition) from this consumer right after the poll; poll again")
        }
        return (group, positions)
    }

    /// Positions that a transaction commits must not be committed beside it.
    func checkTransactional() throws(ClientError) {
        _ = try group("withTransaction(consuming:)")
        guard !configuration.isAutoCommitEnabled else {
            throw ClientError(
                .invalidState,
                "the consumer commits by itself, so that its positions could run ahead of the transaction; set "
                    + "isAutoCommitEnabled to false")
        }
    }

    /// Commits the position of every partition read now and waits for the coordinator.
    public func commit() async throws { try await commit(buffer.positions()) }

    /// Commits these positions (the *next* record to read, not the last one read).
    public func commit(_ offsets: [TopicPartition: CommittedOffset]) async throws {
        let group = try group("commit")
        guard !offsets.isEmpty else { return }
        let (engine, membership) = (engine, membership)
        let isMember = state.withLock { $0.mode == .subscribed }
        try await engine.retrying("commit of group '\(group)'") {
            let codes: [TopicPartition: ErrorCode] = try await engine.loop.reply { reply in
                engine.coordinator(of: group) { result in
                    switch result {
                    case .failure(let error): reply.fail(error)
                    case .success(let coordinator):
                        let identity = isMember ? membership?.commitIdentity ?? .init() : .init()
                        engine.commit(group: group, offsets: offsets, as: identity, to: coordinator) {
                            result in
                            if case .failure = result { engine.forgetCoordinator(of: group) }
                            reply.resolve(with: result)
                        }
                    }
                }
            }
            try await judge(codes, offsets, group)
        }
    }

    private func judge(
        _ codes: [TopicPartition: ErrorCode], _ offsets: [TopicPartition: CommittedOffset], _ group: String
    ) async throws {
        for partition in offsets.keys.sorted() {
            guard let code = codes[partition], code != .none else { continue }
            let subject = "commit of \(partition) in group '\(group)'"
            switch code {
            case .notCoordinator, .coordinatorNotAvailable:
                let engine = engine
                engine.loop.execute { engine.forgetCoordinator(of: group) }
                throw ClientError.broker(code, subject)
            case .staleMemberEpoch:
                // The next heartbeat brings the epoch of the day (KIP-848).
                throw ClientError(
                    .rebalanced, "\(subject): the member's epoch has risen meanwhile (\(code.name))", isRetriable: true,
                    brokerCode: code)
            case .rebalanceInProgress, .illegalGeneration, .unknownMemberID, .fencedMemberEpoch:
                throw ClientError(
                    .rebalanced,
                    "\(subject): the group has moved on (\(code.name)); poll again, and expect records since the last "
                        + "successful commit once more", brokerCode: code)
            case _:
                throw ClientError.broker(code, subject)
            }
        }
    }

    /// Starts to commit the present positions and returns at once. A failure is logged and repaired by the next
    /// commit, which includes these positions.
    public func commitInBackground() { commitInBackground(buffer.positions()) }

    private func commitInBackground(_ offsets: [TopicPartition: CommittedOffset]) {
        guard let group = configuration.groupID, !offsets.isEmpty else { return }
        let (engine, membership) = (engine, membership)
        let isMember = state.withLock { $0.mode == .subscribed }
        engine.loop.execute {
            engine.coordinator(of: group) { result in
                guard case .success(let coordinator) = result else {
                    self.forgetAutoCommit()
                    return
                }
                let identity = isMember ? membership?.commitIdentity ?? .init() : .init()
                engine.commit(group: group, offsets: offsets, as: identity, to: coordinator) { result in
                    switch result {
                    case .success(let codes):
                        guard let failed = codes.first(where: { $0.value != .none }) else { return }
                        self.forgetAutoCommit()
                        engine.forgetCoordinator(of: group)
                        engine.logger.notice(
                            "commit was refused",
                            metadata: ["partition": "\(failed.key)", "code": "\(failed.value.name)"])
                    case .failure(let error):
                        self.forgetAutoCommit()
                        engine.forgetCoordinator(of: group)
                        engine.logger.notice("commit failed", metadata: ["error": "\(error)"])
                    }
                }
            }
        }
    }

    /// A commit failed: the next automatic one must not be skipped for having nothing new to say.
    private func forgetAutoCommit() { state.withLock { $0.lastAutoCommit = [:] } }

    /// The automatic commit, at the beginning of a poll: all records handed out before count as processed.
    private func commitAutomatically() {
        guard configuration.isAutoCommitEnabled, configuration.groupID != nil else { return }
        let now = NIODeadline.now()
        let isDue = state.withLock { state in
            guard now >= state.nextAutoCommit else { return false }
            state.nextAutoCommit = now + TimeAmount(configuration.autoCommitInterval)
            return true
        }
        guard isDue else { return }
        let positions = buffer.positions()
        let isNews = state.withLock { state in
            guard positions != state.lastAutoCommit else { return false }
            state.lastAutoCommit = positions
            return true
        }
        if isNews { commitInBackground(positions) }
    }

    /// What the group has committed; `nil` for a partition without a committed position.
    public func committed(
        _ partitions: some Sequence<TopicPartition>
    ) async throws -> [TopicPartition: CommittedOffset?] {
        let group = try group("committed")
        let wanted = Array(partitions)
        let engine = engine
        let found: [TopicPartition: CommittedOffset] = try await engine.retrying(
            "offsets of group '\(group)'"
        ) {
            try await engine.loop.reply { reply in
                engine.coordinator(of: group) { result in
                    switch result {
                    case .failure(let error): reply.fail(error)
                    case .success(let coordinator):
                        engine.fetchCommitted(group: group, partitions: wanted, from: coordinator) { result in
                            if case .failure = result { engine.forgetCoordinator(of: group) }
                            reply.resolve(with: result)
                        }
                    }
                }
            }
        }
        return Dictionary(wanted.map { ($0, found[$0]) }, uniquingKeysWith: { $1 })
    }

    // MARK: Closing

    /// Commits if auto-commit is on, leaves the group (static members stay) and closes all connections.
    public func close() async throws {
        let mode = state.withLock { $0.mode }
        if mode == .closed { return }
        if mode == .subscribed {
            await leaveGroup()
        } else if mode == .assigned, configuration.isAutoCommitEnabled, configuration.groupID != nil {
            do {
                try await commit()
            } catch {
                engine.logger.warning("commit on close failed", metadata: ["error": "\(error)"])
            }
        }
        state.withLock { $0.mode = .closed }
        buffer.close()
        let (engine, fetcher) = (engine, fetcher)
        await withCheckedContinuation { continuation in
            engine.loop.execute {
                fetcher.shutDown()
                engine.close()
                continuation.resume()
            }
        }
    }
}
