import MartletLogModel

/// The file `quorum-state` and everything that must not be heard before it is written.
///
/// A vote that is forgotten in a crash can be given twice, and an epoch that falls can be led twice; so no message leaves
/// the node until the epoch and the vote it was made under are on the device. Messages keep their order. A change of the
/// known leader alone is written too, but holds nothing up.
struct PersistenceGate {
    private struct Held {
        var version: StateVersion
        var effect: QuorumEffect
    }

    private(set) var current: QuorumStateFile
    private var version = StateVersion(rawValue: 0)
    /// The newest version whose epoch or vote is new.
    private var requiredVersion = StateVersion(rawValue: 0)
    private var persistedVersion: StateVersion
    private var isWriting = false
    private var held: [Held] = []
    /// Off in the mutation table alone.
    private let holds: Bool

    /// - Parameter isPersisted: whether the file says exactly this already.
    init(current: QuorumStateFile, isPersisted: Bool, holds: Bool) {
        self.current = current
        self.holds = holds
        persistedVersion = version
        if !isPersisted {
            version = StateVersion(rawValue: 1)
            requiredVersion = version
        }
    }

    mutating func change(to next: QuorumStateFile) {
        guard next != current else { return }
        version = StateVersion(rawValue: version.rawValue + 1)
        if next.epoch != current.epoch || next.vote != current.vote { requiredVersion = version }
        current = next
    }

    /// Orders the next write, one at a time.
    mutating func write(into effects: inout [QuorumEffect]) {
        guard !isWriting, persistedVersion < version else { return }
        isWriting = true
        effects.append(.persist(current, version))
    }

    mutating func persisted(_ written: StateVersion, into effects: inout [QuorumEffect]) {
        guard written > persistedVersion, written <= version else { return }
        persistedVersion = written
        isWriting = false
        let count = held.firstIndex { $0.version > written } ?? held.count
        for message in held[..<count] { effects.append(message.effect) }
        held.removeFirst(count)
    }

    /// Lets a message out, now or once the state is written. Beyond the limit it is dropped, as a network may.
    mutating func send(_ effect: QuorumEffect, into effects: inout [QuorumEffect]) {
        if !holds || (requiredVersion <= persistedVersion && held.isEmpty) {
            effects.append(effect)
        } else if held.count < QuorumLimits.heldMessageLimit {
            held.append(Held(version: requiredVersion, effect: effect))
        }
    }

    /// Requests that are held when the state changes are out of date. Answers stay, but none may read records any more:
    /// the log may have been cut since.
    mutating func dropStale(_ replacement: (RequestID) -> QuorumEffect) {
        held = held.compactMap { message in
            switch message.effect {
            case .send: nil
            case .respondWithRecords(let id, _, _, _, _), .respondWithSnapshot(let id, _, _, _, _):
                Held(version: message.version, effect: replacement(id))
            case _: message
            }
        }
    }
}
