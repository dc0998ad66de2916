import MartletKafkaProtocol
import MartletLogModel
import NIOCore

/// A group of the classic protocol: members agree on an assignment in generations.
///
/// ```
///            join                    all joined, or time is up           leader's assignment durable
///   empty ─────────► preparingRebalance ─────────────► completingRebalance ─────────────► stable
///     ▲                   ▲     │ nobody left             │ join, leave, gone    │ join, leave, gone
///     └───────────────────┼─────┘                         │                      │
///                         └───────────────────────────────┴──────────────────────┘
/// ```
///
/// Durable (written by replay of the group's record alone): the last completed generation with its members
/// and assignments. Everything else, callers that wait included, is lost with the coordinator and is rebuilt
/// from the record by ``init(loading:id:now:)``.
///
/// Invariants: one generation has one assignment, so a partition has at most one owner in it (I17); a member
/// that is not part of the current generation commits nothing (I18).
///
/// Sources: KIP-62, KIP-134, KIP-345, KIP-394, KIP-429, KIP-800, KIP-814.
struct ClassicGroup {
    enum Phase: Equatable {
        case empty
        case preparingRebalance(Preparing)
        case completingRebalance(Completing)
        case stable
    }

    /// The join phase.
    struct Preparing: Equatable {
        /// When it ends even if members are missing.
        var deadline: Instant
        /// The group was empty before: wait for more members for a while (KIP-134).
        var isInitial: Bool
        /// Of an initial rebalance: what is left of the longest wait, after the running delay.
        var remainingMilliseconds: Int64
        /// Of an initial rebalance: somebody came during the running delay.
        var memberWasAdded: Bool
    }

    /// The sync phase.
    struct Completing: Equatable {
        /// The leader's assignment is on its way to the log.
        var assignmentIsPending: Bool
    }

    let id: String
    private(set) var phase: Phase = .empty
    private(set) var generation: Int32 = 0
    /// Empty until somebody joins; a group without it only stores offsets.
    private(set) var protocolType = ""
    private(set) var protocolName: String?
    private(set) var leaderID: String?
    private(set) var members = MemberTable()
    /// Ids given out and not used yet, with the end of the wait for them (KIP-394).
    private(set) var pendingMembers: [String: Instant] = [:]
    /// Members of the generation whose SyncGroup has not come, and when the wait for them ends.
    private(set) var missingSyncs: Set<String> = []
    private var syncDeadline: Instant?
    /// When the group became empty, or entered its present phase.
    private(set) var phaseChangedAt: Timestamp
    private(set) var lastRebalance: RebalanceReport?
    private var rebalanceStart: (reason: String, memberID: String?, moment: Moment)?
    /// The group's record as the log has it.
    private(set) var persisted: GroupMetadataValue?
    private(set) var persistedByteCount = 0

    init(id: String, now: Timestamp) {
        self.id = id
        phaseChangedAt = now
    }

    /// A consumer group whose last member of the consumer protocol has gone (KIP-848), in the generation of its
    /// epoch: the others have what they were to get. Its record is the caller's to append, and ``startOver`` is to
    /// follow.
    init(
        downgrading id: String, generation: Int32, members downgraded: [ClassicMember], _ outbox: inout Outbox
    ) {
        self.init(id: id, now: outbox.now.timestamp)
        self.generation = generation
        protocolType = ConsumerSubscription.protocolType
        phase = .stable
        for member in downgraded {
            members.add(member)
            armSession(member.id, milliseconds: Int64(member.sessionTimeoutMilliseconds), &outbox)
        }
        protocolName = members.selectedProtocol()
    }

    /// Asks all members to join again.
    mutating func startOver(_ reason: String, _ memberID: String?, _ outbox: inout Outbox) {
        prepareRebalance(reason, memberID, &outbox)
    }

    // MARK: Replay and loading

    /// The only writer of what is durable.
    mutating func replay(_ value: GroupMetadataValue?) {
        persisted = value
        persistedByteCount = value?.memberByteCount ?? 0
    }

    /// Rebuilds the working state from the record. Members get a whole session to be heard of.
    mutating func load(into outbox: inout Outbox) {
        guard let persisted else { return }
        generation = persisted.generation
        protocolType = persisted.protocolType
        protocolName = persisted.protocol
        leaderID = persisted.leader
        if persisted.currentStateTimestamp >= 0 {
            phaseChangedAt = Timestamp(milliseconds: persisted.currentStateTimestamp)
        }
        for value in persisted.members {
            members.add(
                ClassicMember(
                    value, protocolName: persisted.protocol ?? "",
                    deadline: outbox.instant(inMilliseconds: Int64(value.sessionTimeout))))
            armSession(value.memberID, milliseconds: Int64(value.sessionTimeout), &outbox)
        }
        phase = members.isEmpty ? .empty : .stable
    }

    // MARK: JoinGroup

    mutating func join(
        _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity, _ traits: JoinTraits,
        _ outbox: inout Outbox
    ) {
        guard accepts(request.memberID, limit: outbox.configuration.groupMaxSize) else {
            removeMember(request.memberID, error: .groupMaxSizeReached, &outbox)
            Self.refuse(id, .groupMaxSizeReached, memberID: "", &outbox)
            return completeJoinIfAllJoined(&outbox)
        }
        guard supports(request) else {
            return Self.refuse(id, .inconsistentGroupProtocol, memberID: request.memberID, &outbox)
        }
        if request.memberID.isEmpty {
            joinAsNewMember(id, request, client, traits, &outbox)
        } else {
            joinAsKnownMember(id, request, client, &outbox)
        }
    }

    /// What the member that joins, or the one whose place it takes, makes the broker hold so far, its assignment aside.
    func bytesHeld(by request: JoinGroupRequest) -> Int {
        if pendingMembers[request.memberID] != nil { return MemberBytes.perPendingMember }
        let place = request.groupInstanceID.flatMap { members.instances[$0] } ?? request.memberID
        return members[place]?.byteCount(assigned: 0) ?? 0
    }

    private func accepts(_ memberID: String, limit: Int) -> Bool {
        switch phase {
        case .empty: true
        // During a join phase members count that have come back for the next generation.
        case .preparingRebalance: members[memberID]?.joinRequest != nil || members.waitingJoinCount < limit
        case .completingRebalance, .stable: members.contains(memberID) || members.count < limit
        }
    }

    private func supports(_ request: JoinGroupRequest) -> Bool {
        guard !request.protocolType.isEmpty, !request.protocols.isEmpty else { return false }
        if members.isEmpty { return true }
        return request.protocolType == protocolType && members.shares(request.protocols)
    }

    private mutating func joinAsNewMember(
        _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity, _ traits: JoinTraits,
        _ outbox: inout Outbox
    ) {
        let newID = MemberID.make(prefix: request.groupInstanceID ?? client.clientID, traits.newMemberID)
        if let instanceID = request.groupInstanceID {
            if let oldID = members.instances[instanceID] {
                replaceStaticMember(oldID, newID, id, request, client, traits, &outbox)
            } else {
                addMember(newID, id, request, client, &outbox)
            }
        } else if traits.requiresKnownMemberID {
            guard pendingMembers.count < GroupLimits.pendingMemberCountLimit else {
                return Self.refuse(id, .groupMaxSizeReached, memberID: "", &outbox)
            }
            let deadline = outbox.instant(inMilliseconds: Int64(request.sessionTimeoutMs))
            pendingMembers[newID] = deadline
            outbox.effects.append(.schedule(.pendingMember(group: self.id, member: newID), at: deadline))
            Self.refuse(id, .memberIDRequired, memberID: newID, &outbox)
        } else {
            addMember(newID, id, request, client, &outbox)
        }
    }

    private mutating func joinAsKnownMember(
        _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity, _ outbox: inout Outbox
    ) {
        let memberID = request.memberID
        if pendingMembers[memberID] != nil, request.groupInstanceID == nil {
            return addMember(memberID, id, request, client, &outbox)
        }
        if let code = problem(memberID, instanceID: request.groupInstanceID) {
            return Self.refuse(id, code, memberID: memberID, &outbox)
        }
        let isUnchanged = members[memberID]?.protocols == request.protocols
        let reason = Self.quoted(request.reason)
        switch phase {
        case .empty:
            Self.refuse(id, .unknownMemberID, memberID: memberID, &outbox)
        case .preparingRebalance:
            update(memberID, id, request, client, &outbox)
            completeJoinIfAllJoined(&outbox)
        case .completingRebalance:
            if isUnchanged {
                // Its answer was lost, or it asks twice: same answer again.
                answerJoin(id, memberID, &outbox)
            } else {
                update(memberID, id, request, client, &outbox)
                prepareRebalance(
                    "member \(memberID) changed its subscription during the rebalance\(reason)", memberID,
                    &outbox)
            }
        case .stable:
            if memberID == leaderID {
                // The leader asks for a new assignment, for instance because a topic has grown.
                update(memberID, id, request, client, &outbox)
                prepareRebalance("leader \(memberID) rejoined\(reason)", memberID, &outbox)
            } else if !isUnchanged {
                update(memberID, id, request, client, &outbox)
                prepareRebalance("member \(memberID) changed its subscription\(reason)", memberID, &outbox)
            } else {
                answerJoin(id, memberID, &outbox)
            }
        }
    }

    private mutating func addMember(
        _ memberID: String, _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity,
        _ outbox: inout Outbox
    ) {
        if pendingMembers.removeValue(forKey: memberID) != nil {
            outbox.effects.append(.cancel(.pendingMember(group: self.id, member: memberID)))
        }
        if members.isEmpty { protocolType = request.protocolType }
        let wait = GroupLimits.newMemberJoinTimeoutMilliseconds
        members.add(
            ClassicMember(
                id: memberID, request: request, client: client, joinRequest: id, isNew: true,
                deadline: outbox.instant(inMilliseconds: wait)))
        armSession(memberID, milliseconds: wait, &outbox)
        if case .preparingRebalance(var preparing) = phase, preparing.isInitial {
            preparing.memberWasAdded = true
            phase = .preparingRebalance(preparing)
        }
        prepareRebalanceOrCompleteJoin(
            "member \(memberID) joined\(Self.quoted(request.reason))", memberID, &outbox)
    }

    private mutating func update(
        _ memberID: String, _ id: RequestID, _ request: JoinGroupRequest, _ client: ClientIdentity,
        _ outbox: inout Outbox
    ) {
        members.setProtocols(request.protocols, of: memberID)
        members[memberID]?.client = client
        members[memberID]?.sessionTimeoutMilliseconds = request.sessionTimeoutMs
        members[memberID]?.rebalanceTimeoutMilliseconds =
            request.rebalanceTimeoutMs < 0 ? request.sessionTimeoutMs : request.rebalanceTimeoutMs
        if let earlier = members.setJoinRequest(id, of: memberID) {
            // Only the latest request of a member is answered with a generation; the client has given up on
            // the one before, and an open request must not stay in the shell for ever.
            Self.refuse(earlier, .rebalanceInProgress, memberID: memberID, &outbox)
        }
    }

    /// A static member came back under a new id (KIP-345). In a stable group whose strategy stays the same it
    /// takes over the old assignment without a rebalance; the old id is fenced from now on.
    private mutating func replaceStaticMember(
        _ oldID: String, _ newID: String, _ id: RequestID, _ request: JoinGroupRequest,
        _ client: ClientIdentity,
        _ traits: JoinTraits, _ outbox: inout Outbox
    ) {
        var newMember = ClassicMember(
            id: newID, request: request, client: client, joinRequest: nil, isNew: false,
            deadline: outbox.instant(inMilliseconds: Int64(request.sessionTimeoutMs)))
        newMember.assignment = members[oldID]?.assignment ?? ByteBuffer()
        let oldLeader = leaderID
        guard let old = members.replace(oldID, by: newMember) else { return }
        if let waiting = old.joinRequest { Self.refuse(waiting, .fencedInstanceID, memberID: oldID, &outbox) }
        if let waiting = old.syncRequest { Self.answerSync(waiting, .fencedInstanceID, &outbox) }
        outbox.effects.append(.cancel(.session(group: self.id, member: oldID)))
        armSession(newID, milliseconds: Int64(request.sessionTimeoutMs), &outbox)
        if leaderID == oldID { leaderID = newID }
        if missingSyncs.remove(oldID) != nil { missingSyncs.insert(newID) }

        let reason =
            "static member \(request.groupInstanceID ?? "") returned as \(newID)\(Self.quoted(request.reason))"
        switch phase {
        case .empty:
            Self.refuse(id, .unknownMemberID, memberID: newID, &outbox)
        case .preparingRebalance:
            members.setJoinRequest(id, of: newID)
            completeJoinIfAllJoined(&outbox)
        case .completingRebalance:
            members.setJoinRequest(id, of: newID)
            prepareRebalance(reason, newID, &outbox)
        case .stable:
            guard members.selectedProtocol() == protocolName else {
                members.setJoinRequest(id, of: newID)
                return prepareRebalance(reason, newID, &outbox)
            }
            var response = generationResponse(newID)
            let isLeader = newID == leaderID
            // An old client would take itself for the leader and assign again while nobody waits for that;
            // it is told the former leader's id and so acts as a follower.
            response.leader = traits.supportsSkippingAssignment ? leaderID ?? "" : oldLeader ?? ""
            if isLeader, traits.supportsSkippingAssignment {
                response.members = memberList()
                response.skipAssignment = true
            }
            outbox.append(
                [record(assignments: nil, now: outbox.now.timestamp)],
                then: [.respond(id, .joinGroup(response))])
        }
    }

    // MARK: Rebalance

    private mutating func prepareRebalanceOrCompleteJoin(
        _ reason: String, _ memberID: String?, _ outbox: inout Outbox
    ) {
        switch phase {
        case .empty, .completingRebalance, .stable: prepareRebalance(reason, memberID, &outbox)
        case .preparingRebalance: completeJoinIfAllJoined(&outbox)
        }
    }

    private mutating func prepareRebalance(_ reason: String, _ memberID: String?, _ outbox: inout Outbox) {
        let wasEmpty = phase == .empty
        if !wasEmpty { dropSyncs(.rebalanceInProgress, &outbox) }
        rebalanceStart = (GroupLimits.shortened(reason), memberID, outbox.now)
        let longest = Int64(members.inOrder.map(\.rebalanceTimeoutMilliseconds).max() ?? 0)
        let delay = wasEmpty ? min(outbox.configuration.initialRebalanceDelayMilliseconds, longest) : longest
        let deadline = outbox.instant(inMilliseconds: delay)
        phase = .preparingRebalance(
            Preparing(
                deadline: deadline, isInitial: wasEmpty && delay > 0, remainingMilliseconds: longest - delay,
                memberWasAdded: false))
        phaseChangedAt = outbox.now.timestamp
        outbox.effects.append(.schedule(.join(group: id), at: deadline))
        completeJoinIfAllJoined(&outbox)
    }

    private mutating func completeJoinIfAllJoined(_ outbox: inout Outbox) {
        guard case .preparingRebalance(let preparing) = phase, !preparing.isInitial,
            members.waitingJoinCount == members.count, pendingMembers.isEmpty
        else { return }
        completeJoin(&outbox)
    }

    /// The join timer: an initial delay starts over while members keep coming; else whoever is there goes on.
    mutating func joinTimeIsUp(_ outbox: inout Outbox) {
        guard case .preparingRebalance(var preparing) = phase else { return }
        guard outbox.now.instant >= preparing.deadline else {
            outbox.effects.append(.schedule(.join(group: id), at: preparing.deadline))
            return
        }
        if preparing.isInitial, preparing.memberWasAdded, preparing.remainingMilliseconds > 0 {
            let delay = min(
                outbox.configuration.initialRebalanceDelayMilliseconds, preparing.remainingMilliseconds)
            preparing.memberWasAdded = false
            preparing.remainingMilliseconds -= delay
            preparing.deadline = outbox.instant(inMilliseconds: delay)
            phase = .preparingRebalance(preparing)
            outbox.effects.append(.schedule(.join(group: id), at: preparing.deadline))
            return
        }
        completeJoin(&outbox)
    }

    private mutating func completeJoin(_ outbox: inout Outbox) {
        outbox.effects.append(.cancel(.join(group: id)))
        for member in members.inOrder where member.joinRequest == nil && member.instanceID == nil {
            dropMember(member.id, error: .unknownMemberID, &outbox)
        }
        electLeader()
        if !members.isEmpty, members.waitingJoinCount == 0 {
            // Only static members that are away: they keep their place until their session ends.
            let longest = Int64(members.inOrder.map(\.rebalanceTimeoutMilliseconds).max() ?? 0)
            let deadline = outbox.instant(inMilliseconds: longest)
            phase = .preparingRebalance(
                Preparing(
                    deadline: deadline, isInitial: false, remainingMilliseconds: 0, memberWasAdded: false))
            outbox.effects.append(.schedule(.join(group: id), at: deadline))
            return
        }
        generation = generation == .max ? 1 : generation + 1
        phaseChangedAt = outbox.now.timestamp
        reportRebalance(&outbox)
        guard !members.isEmpty else {
            protocolName = nil
            leaderID = nil
            phase = .empty
            outbox.append([record(assignments: nil, now: outbox.now.timestamp)])
            return
        }
        protocolName = members.selectedProtocol()
        phase = .completingRebalance(Completing(assignmentIsPending: false))
        missingSyncs = Set(members.ids)
        for memberID in members.ids {
            if let request = members.setJoinRequest(nil, of: memberID) {
                answerJoin(request, memberID, &outbox)
            }
            members[memberID]?.isNew = false
            heardOf(memberID, &outbox)
        }
        let longest = Int64(members.inOrder.map(\.rebalanceTimeoutMilliseconds).max() ?? 0)
        let deadline = outbox.instant(inMilliseconds: longest)
        syncDeadline = deadline
        outbox.effects.append(.schedule(.sync(group: id), at: deadline))
    }

    /// The leader stays if it has joined; else the first member that has takes its place.
    private mutating func electLeader() {
        if let leaderID, members[leaderID]?.joinRequest != nil { return }
        leaderID =
            members.ids.first { members[$0]?.joinRequest != nil }
            ?? leaderID.flatMap { members.contains($0) ? $0 : nil } ?? members.ids.first
    }

    private mutating func reportRebalance(_ outbox: inout Outbox) {
        guard let start = rebalanceStart else { return }
        rebalanceStart = nil
        let report = RebalanceReport(
            group: id, generation: generation, reason: start.reason, memberID: start.memberID,
            startedAt: start.moment.timestamp,
            durationMilliseconds: outbox.now.instant.milliseconds(since: start.moment.instant),
            memberCount: members.count)
        lastRebalance = report
        outbox.effects.append(.report(report))
    }

    // MARK: SyncGroup

    mutating func sync(_ id: RequestID, _ request: SyncGroupRequest, _ outbox: inout Outbox) {
        if let code = problem(request.memberID, instanceID: request.groupInstanceID) {
            return Self.answerSync(id, code, &outbox)
        }
        guard request.generationID == generation else {
            return Self.answerSync(id, .illegalGeneration, &outbox)
        }
        if let type = request.protocolType, type != protocolType {
            return Self.answerSync(id, .inconsistentGroupProtocol, &outbox)
        }
        if let name = request.protocolName, name != protocolName {
            return Self.answerSync(id, .inconsistentGroupProtocol, &outbox)
        }
        switch phase {
        case .empty:
            Self.answerSync(id, .unknownMemberID, &outbox)
        case .preparingRebalance:
            Self.answerSync(id, .rebalanceInProgress, &outbox)
        case .completingRebalance(let completing):
            if let earlier = members[request.memberID]?.syncRequest {
                Self.answerSync(earlier, .rebalanceInProgress, &outbox)
            }
            members[request.memberID]?.syncRequest = id
            arrived(request.memberID, &outbox)
            if request.memberID == leaderID, !completing.assignmentIsPending { persist(request, &outbox) }
        case .stable:
            arrived(request.memberID, &outbox)
            heardOf(request.memberID, &outbox)
            answerSync(id, request.memberID, &outbox)
        }
    }

    private mutating func persist(_ request: SyncGroupRequest, _ outbox: inout Outbox) {
        var assignments: [String: ByteBuffer] = [:]
        var byteCount = 0
        for entry in request.assignments where members.contains(entry.memberID) {
            let before = assignments.updateValue(entry.assignment, forKey: entry.memberID)
            byteCount += entry.assignment.readableBytes - (before?.readableBytes ?? 0)
        }
        var held = 0
        for member in members.inOrder {
            byteCount += member.recordByteCount(protocolName)
            held += member.byteCount(assigned: assignments[member.id]?.readableBytes ?? 0)
        }
        guard byteCount <= GroupLimits.groupRecordBytesLimit else {
            // The record would not fit into the log: nobody gets an assignment, all try again.
            dropSyncs(.unknownServerError, &outbox)
            return prepareRebalance(
                "the assignment has \(byteCount) bytes, more than a record takes", leaderID, &outbox)
        }
        guard outbox.hasRoom(forMemberBytes: held - max(members.byteCount, persistedByteCount)) else {
            dropSyncs(.groupMaxSizeReached, &outbox)
            return prepareRebalance(
                "the assignment has no room among the \(outbox.configuration.memberBytesLimit) bytes of all members of this broker's groups",
                leaderID, &outbox)
        }
        phase = .completingRebalance(Completing(assignmentIsPending: true))
        outbox.append(
            [record(assignments: assignments, now: outbox.now.timestamp)],
            then: [.handOutAssignment(group: id, generation: generation)])
    }

    /// The assignment is durable. If the group has moved on meanwhile, the members were told so already.
    mutating func handOutAssignment(generation: Int32, _ outbox: inout Outbox) {
        guard case .completingRebalance(let completing) = phase, completing.assignmentIsPending,
            generation == self.generation, let persisted
        else { return }
        phase = .stable
        phaseChangedAt = outbox.now.timestamp
        for entry in persisted.members { members[entry.memberID]?.assignment = entry.assignment }
        for memberID in members.ids {
            guard let request = members[memberID]?.syncRequest else { continue }
            members[memberID]?.syncRequest = nil
            answerSync(request, memberID, &outbox)
            heardOf(memberID, &outbox)
        }
    }

    private mutating func arrived(_ memberID: String, _ outbox: inout Outbox) {
        missingSyncs.remove(memberID)
        if missingSyncs.isEmpty, syncDeadline != nil {
            syncDeadline = nil
            outbox.effects.append(.cancel(.sync(group: id)))
        }
    }

    /// Members that did not ask for their assignment in time have lost their place.
    mutating func syncTimeIsUp(_ outbox: inout Outbox) {
        guard let deadline = syncDeadline else { return }
        guard outbox.now.instant >= deadline else {
            outbox.effects.append(.schedule(.sync(group: id), at: deadline))
            return
        }
        syncDeadline = nil
        switch phase {
        case .empty, .preparingRebalance: return
        case .completingRebalance, .stable: break
        }
        let missing = members.ids.filter { missingSyncs.contains($0) }
        guard !missing.isEmpty else { return }
        for memberID in missing { dropMember(memberID, error: .unknownMemberID, &outbox) }
        prepareRebalance(
            "\(missing.count) member(s) did not fetch their assignment in time", missing.first, &outbox)
    }

    /// Ends the sync phase without an assignment. Assignments of the generation before are void: their owners
    /// have all been asked to join again.
    private mutating func dropSyncs(_ code: ErrorCode, _ outbox: inout Outbox) {
        if syncDeadline != nil { outbox.effects.append(.cancel(.sync(group: id))) }
        syncDeadline = nil
        missingSyncs = []
        for memberID in members.ids {
            guard let request = members[memberID]?.syncRequest else { continue }
            members[memberID]?.syncRequest = nil
            Self.answerSync(request, code, &outbox)
        }
    }

    // MARK: Heartbeat, sessions, leaving

    mutating func heartbeat(_ request: HeartbeatRequest, _ outbox: inout Outbox) -> ErrorCode {
        if let code = problem(request.memberID, instanceID: request.groupInstanceID) { return code }
        guard request.generationID == generation else { return .illegalGeneration }
        switch phase {
        case .empty:
            return .unknownMemberID
        case .preparingRebalance:
            heardOf(request.memberID, &outbox)
            return .rebalanceInProgress
        case .completingRebalance, .stable:
            heardOf(request.memberID, &outbox)
            return .none
        }
    }

    /// Moves the member's deadline; its timer finds out when it fires.
    mutating func heardOf(_ memberID: String, _ outbox: inout Outbox) {
        guard let member = members[memberID] else { return }
        armSession(memberID, milliseconds: Int64(member.sessionTimeoutMilliseconds), &outbox)
    }

    private mutating func armSession(_ memberID: String, milliseconds: Int64, _ outbox: inout Outbox) {
        let deadline = outbox.instant(inMilliseconds: milliseconds)
        members[memberID]?.deadline = deadline
        if let timerAt = members[memberID]?.timerAt, timerAt <= deadline { return }
        members[memberID]?.timerAt = deadline
        outbox.effects.append(.schedule(.session(group: id, member: memberID), at: deadline))
    }

    mutating func sessionTimeIsUp(_ memberID: String, _ outbox: inout Outbox) {
        guard let member = members[memberID] else { return }
        members[memberID]?.timerAt = nil
        // Who waits for an answer of ours cannot send heartbeats; only a first join has an end of its own.
        let waits = member.syncRequest != nil || (member.joinRequest != nil && !member.isNew)
        if waits {
            return armSession(memberID, milliseconds: Int64(member.sessionTimeoutMilliseconds), &outbox)
        }
        guard outbox.now.instant >= member.deadline else {
            members[memberID]?.timerAt = member.deadline
            outbox.effects.append(.schedule(.session(group: id, member: memberID), at: member.deadline))
            return
        }
        removeMember(memberID, error: .unknownMemberID, &outbox)
        prepareRebalanceOrCompleteJoin(
            "member \(memberID) was not heard of for \(member.sessionTimeoutMilliseconds) ms", memberID,
            &outbox)
    }

    mutating func pendingTimeIsUp(_ memberID: String, _ outbox: inout Outbox) {
        guard let deadline = pendingMembers[memberID] else { return }
        guard outbox.now.instant >= deadline else {
            outbox.effects.append(.schedule(.pendingMember(group: id, member: memberID), at: deadline))
            return
        }
        pendingMembers[memberID] = nil
        completeJoinIfAllJoined(&outbox)
    }

    /// LeaveGroup (batched since KIP-345): each identity gets its own answer.
    mutating func leave(
        _ identities: [LeaveGroupRequest.MemberIdentity], _ outbox: inout Outbox
    ) -> [LeaveGroupResponse.MemberResponse] {
        var left: [(id: String, reason: String?)] = []
        let answers = identities.map { identity in
            var answer = LeaveGroupResponse.MemberResponse()
            answer.memberID = identity.memberID
            answer.groupInstanceID = identity.groupInstanceID
            answer.errorCode = leave(identity, &left, &outbox).rawValue
            return answer
        }
        if let first = left.first {
            let others = left.count > 1 ? " and \(left.count - 1) more" : ""
            prepareRebalanceOrCompleteJoin(
                "member \(first.id)\(others) left\(Self.quoted(first.reason))", first.id, &outbox)
        } else {
            completeJoinIfAllJoined(&outbox)
        }
        return answers
    }

    private mutating func leave(
        _ identity: LeaveGroupRequest.MemberIdentity, _ left: inout [(id: String, reason: String?)],
        _ outbox: inout Outbox
    ) -> ErrorCode {
        var memberID = identity.memberID
        if memberID.isEmpty, let instanceID = identity.groupInstanceID {
            // An administrator names a static member by its instance alone.
            guard let known = members.instances[instanceID] else { return .unknownMemberID }
            memberID = known
        } else if pendingMembers[memberID] != nil {
            guard identity.groupInstanceID == nil else { return .unknownMemberID }
            pendingMembers[memberID] = nil
            outbox.effects.append(.cancel(.pendingMember(group: id, member: memberID)))
            return .none
        } else if let code = problem(memberID, instanceID: identity.groupInstanceID) {
            return code
        }
        removeMember(memberID, error: .unknownMemberID, &outbox)
        left.append((memberID, identity.reason))
        return .none
    }

    private mutating func removeMember(_ memberID: String, error: ErrorCode, _ outbox: inout Outbox) {
        if pendingMembers.removeValue(forKey: memberID) != nil {
            outbox.effects.append(.cancel(.pendingMember(group: id, member: memberID)))
        }
        dropMember(memberID, error: error, &outbox)
    }

    private mutating func dropMember(_ memberID: String, error: ErrorCode, _ outbox: inout Outbox) {
        guard let member = members.remove(memberID) else { return }
        missingSyncs.remove(memberID)
        if let request = member.joinRequest { Self.refuse(request, error, memberID: memberID, &outbox) }
        if let request = member.syncRequest { Self.answerSync(request, error, &outbox) }
        outbox.effects.append(.cancel(.session(group: id, member: memberID)))
        if leaderID == memberID { leaderID = members.ids.first }
    }

    /// Answers everybody who waits; the group is about to be thrown away.
    mutating func abandon(_ code: ErrorCode, _ outbox: inout Outbox) {
        for memberID in members.ids {
            if let request = members.setJoinRequest(nil, of: memberID) {
                Self.refuse(request, code, memberID: memberID, &outbox)
            }
            if let request = members[memberID]?.syncRequest {
                members[memberID]?.syncRequest = nil
                Self.answerSync(request, code, &outbox)
            }
        }
    }

    // MARK: Checks

    /// Whether a commit is from the group's present generation (I18); hearing of the member counts.
    mutating func checkCommit(_ request: OffsetCommitRequest, _ outbox: inout Outbox) -> ErrorCode? {
        if request.generationIDOrMemberEpoch < 0, isEmpty { return nil }
        if request.generationIDOrMemberEpoch >= 0 || !request.memberID.isEmpty
            || request.groupInstanceID != nil
        {
            if let code = problem(request.memberID, instanceID: request.groupInstanceID) { return code }
            guard request.generationIDOrMemberEpoch == generation else { return .illegalGeneration }
        } else {
            // Somebody outside the group may not move offsets under the feet of its members.
            return .unknownMemberID
        }
        switch phase {
        case .empty: return nil
        case .completingRebalance: return .rebalanceInProgress
        case .preparingRebalance, .stable:
            heardOf(request.memberID, &outbox)
            return nil
        }
    }
}
