import MartletLogModel

/// What the active controller has heard from brokers: when, and how far each has replayed the metadata. Soft state:
/// it is lost with the controller, and the next one gives every broker a whole session to be heard again (KIP-631).
struct BrokerSessions {
    struct Session: Equatable {
        var epoch: Int64
        var lastContact: Instant
        /// Last metadata offset that the broker says it has replayed; `nil` until it has said so.
        var metadataOffset: Int64?
    }

    private var sessions: [BrokerID: Session] = [:]

    func session(of id: BrokerID, epoch: Int64) -> Session? {
        sessions[id].flatMap { $0.epoch == epoch ? $0 : nil }
    }

    func isAlive(_ id: BrokerID, epoch: Int64, now: Instant, timeoutMilliseconds: Int64) -> Bool {
        guard let session = session(of: id, epoch: epoch) else { return false }
        return session.lastContact.advanced(byMilliseconds: timeoutMilliseconds) > now
    }

    /// The earliest instant at which a session of one of these brokers may be over.
    func nextExpiry(of brokers: [BrokerImage], timeoutMilliseconds: Int64) -> Instant? {
        brokers.compactMap { session(of: $0.id, epoch: $0.epoch)?.lastContact }.min()?
            .advanced(byMilliseconds: timeoutMilliseconds)
    }

    mutating func contacted(_ id: BrokerID, epoch: Int64, metadataOffset: Int64?, now: Instant) {
        if var session = session(of: id, epoch: epoch) {
            // Requests may overtake each other; what was heard and replayed stays so.
            session.lastContact = max(session.lastContact, now)
            if let metadataOffset {
                session.metadataOffset = max(session.metadataOffset ?? -1, metadataOffset)
            }
            sessions[id] = session
        } else if (sessions[id]?.epoch ?? -1) < epoch {
            sessions[id] = Session(epoch: epoch, lastContact: now, metadataOffset: metadataOffset)
        }
    }

    /// A registration was replayed: sessions of earlier runs are over.
    mutating func registered(_ id: BrokerID, epoch: Int64) {
        if let session = sessions[id], session.epoch < epoch { sessions[id] = nil }
    }

    mutating func ended(_ id: BrokerID) { sessions[id] = nil }
}
