import MartletLogModel
package import MartletStorage
package import NIOCore
import Synchronization

/// A file system in memory that forgets, at a crash, what a real one may forget.
///
/// Model (reliability notes F7-F14), more hostile than any one file system:
/// - content written since a file's last successful `sync` survives a crash sector by sector (512 bytes),
///   any subset of them; the size becomes any size the file had since; missing sectors read as zeros;
/// - directory changes since the last `syncDirectory` survive as any subset, each change (create, remove,
///   rename) whole or not at all, in order;
/// - operations fail on demand: no space, input/output error, a failed flush after which the file's
///   unsynced pages silently count as clean;
/// - bits flip on demand.
///
/// Deterministic: the same operations and the same seed give the same image.
package struct SimulatedDisk: Disk {
    package static let sectorBytes = 512
    /// A capacity that nobody fills.
    package static let unlimited = 1 << 40
    private let core: Core

    /// - Parameter capacity: bytes that all files together may use.
    package init(capacity: Int = unlimited) {
        core = Core(State(capacity: capacity))
    }

    private init(state: State) { core = Core(state) }

    /// Everything mutable, behind one lock: flush works run on other threads.
    final class Core: Sendable {
        let state: Guarded<State>
        init(_ state: sending State) { self.state = Guarded(state) }
    }

    // MARK: Faults

    /// After this many further operations every operation fails: the process is gone. See ``crashed(seed:)``.
    package func stop(afterOperations count: Int) {
        core.state.withLock { $0.stopAt = $0.operationCount + count }
    }

    /// The operation to stop at was reached: the process is to be taken for dead.
    package var hasStopped: Bool {
        core.state.withLock { $0.isStopped }
    }

    /// Takes ``stop(afterOperations:)`` back.
    package func clearStop() { core.state.withLock { $0.stopAt = nil } }

    /// The process has ended and the machine has not: what was written stays in memory, unsynced as it was, and
    /// locks are free.
    package func processEnded() { core.state.withLock { $0.locks = [] } }

    /// What the next operations of a kind do. `skipping` operations of that kind succeed first; `count`
    /// then fail.
    package func fail(_ operation: SimulatedOperation, _ kind: DiskError.Kind, skipping: Int = 0, count: Int = 1) {
        core.state.withLock {
            $0.faults.append(Fault(operation: operation, kind: kind, skipping: skipping, count: count))
        }
    }

    package func clearFaults() { core.state.withLock { $0.faults = [] } }

    /// Flushes report success and do nothing, as a lying device does; tests use it to prove that they
    /// would notice.
    package func pretendToFlush(_ pretend: Bool) { core.state.withLock { $0.pretendsToFlush = pretend } }

    package func setCapacity(_ capacity: Int) { core.state.withLock { $0.capacity = capacity } }

    package var usedBytes: Int { core.state.withLock { $0.used } }

    /// Operations so far: a place to crash at.
    package var operationCount: Int { core.state.withLock { $0.operationCount } }

    /// One line per operation since the beginning.
    package var trace: [String] {
        core.state.withLock { $0.trace.map { "\($0.number) \($0.operation) \($0.path)" } }
    }

    /// Bytes of a file as the process sees them.
    package func content(_ path: String) -> [UInt8]? {
        core.state.withLock { state in state.lookup(path).flatMap { state.nodes[$0]?.content } }
    }

    /// Replaces a file's bytes, durably.
    package func setContent(_ path: String, _ bytes: [UInt8]) {
        core.state.withLock { state in
            guard let id = state.lookup(path) else { return }
            state.nodes[id]?.content = bytes
            state.nodes[id]?.durableSize = bytes.count
            state.nodes[id]?.preimages = [:]
            state.nodes[id]?.dirtySectors = []
            state.nodes[id]?.sizes = []
        }
    }

    /// Flips one bit of a file, in memory and on the medium.
    package func flip(_ path: String, byte: Int, bit: Int) {
        guard var bytes = content(path), byte < bytes.count else { return }
        bytes[byte] ^= 1 << UInt8(bit)
        setContent(path, bytes)
    }

    /// All file paths, sorted.
    package var files: [String] {
        core.state.withLock { state in
            var found: [String] = []
            state.collect("", State.rootID, into: &found)
            return found.sorted()
        }
    }

    /// The disk after the power went now: a new disk with one of the legal outcomes, drawn from `seed`.
    /// Seed 0 loses everything unsynced, seed 1 nothing (a process crash).
    package func crashed(seed: UInt64) -> SimulatedDisk {
        var generator = SplitMix64(seed: seed)
        let image = core.state.withLock { state in
            state.crashImage(mode: CrashMode(seed: seed), using: &generator)
        }
        return SimulatedDisk(state: image)
    }

    enum CrashMode {
        case loseAll, keepAll, subset, prefix
        init(seed: UInt64) {
            switch seed {
            case 0: self = .loseAll
            case 1: self = .keepAll
            case _: self = seed % 3 == 0 ? .prefix : .subset
            }
        }
    }

    // MARK: Disk

    package func open(_ path: String, _ mode: DiskOpenMode) throws(DiskError) -> SimulatedFile {
        let creates: Bool
        switch mode {
        case .read, .write: creates = false
        case .create, .createNew: creates = core.state.withLock { $0.lookup(path) == nil }
        }
        return try core.run(creates ? .create : .open, path) { state throws(DiskError) in
            if let id = state.lookup(path) {
                guard !state.isDirectory(id) else { throw DiskError(.other, operation: "open", path: path) }
                if case .createNew = mode { throw DiskError(.exists, operation: "open", path: path) }
                return SimulatedFile(core: core, node: id, path: path)
            }
            switch mode {
            case .read, .write: throw DiskError(.notFound, operation: "open", path: path)
            case .create, .createNew: break
            }
            let id = state.makeFile()
            try state.change(parentPath(of: path), [(State.name(path), id)], path)
            return SimulatedFile(core: core, node: id, path: path)
        }
    }

    package func createDirectory(_ path: String) throws(DiskError) {
        try core.run(.createDirectory, path) { state throws(DiskError) in
            guard state.lookup(path) == nil else { throw DiskError(.exists, operation: "mkdir", path: path) }
            let id = state.makeDirectory()
            try state.change(parentPath(of: path), [(State.name(path), id)], path)
        }
    }

    package func syncDirectory(_ path: String) throws(DiskError) {
        try core.run(.syncDirectory, path) { state throws(DiskError) in
            guard let id = state.lookup(path), state.isDirectory(id) else {
                throw DiskError(.notFound, operation: "fsync", path: path)
            }
            if !state.pretendsToFlush { state.syncDirectory(id) }
        }
    }

    package func rename(_ path: String, to target: String) throws(DiskError) {
        try core.run(.rename, path) { state throws(DiskError) in
            guard let id = state.lookup(path) else { throw DiskError(.notFound, operation: "rename", path: path) }
            precondition(parentPath(of: path) == parentPath(of: target), "renames stay within a directory")
            try state.change(
                parentPath(of: path), [(State.name(path), nil), (State.name(target), id)], path)
        }
    }

    package func remove(_ path: String) throws(DiskError) {
        try core.run(.remove, path) { state throws(DiskError) in
            guard let id = state.lookup(path), !state.isDirectory(id) else {
                throw DiskError(.notFound, operation: "unlink", path: path)
            }
            try state.change(parentPath(of: path), [(State.name(path), nil)], path)
        }
    }

    package func removeDirectory(_ path: String) throws(DiskError) {
        try core.run(.remove, path) { state throws(DiskError) in
            guard let id = state.lookup(path), state.isDirectory(id) else {
                throw DiskError(.notFound, operation: "rmdir", path: path)
            }
            guard state.entries(of: id).isEmpty else { throw DiskError(.exists, operation: "rmdir", path: path) }
            try state.change(parentPath(of: path), [(State.name(path), nil)], path)
        }
    }

    package func list(_ path: String) throws(DiskError) -> [String] {
        try core.run(.list, path) { state throws(DiskError) in
            guard let id = state.lookup(path), state.isDirectory(id) else {
                throw DiskError(.notFound, operation: "opendir", path: path)
            }
            return state.entries(of: id).keys.sorted()
        }
    }

    package func status(_ path: String) throws(DiskError) -> DiskStatus {
        try core.run(.status, path) { state throws(DiskError) in
            guard let id = state.lookup(path) else { throw DiskError(.notFound, operation: "stat", path: path) }
            return DiskStatus(
                size: state.nodes[id]?.content.count ?? 0, modified: state.nodes[id]?.modified ?? 0,
                isDirectory: state.isDirectory(id))
        }
    }

    /// Time that later writes carry as the files' modification time, in milliseconds.
    package func setTime(_ milliseconds: Int64) { core.state.withLock { $0.time = milliseconds } }

    package func space(_ path: String) throws(DiskError) -> DiskSpace {
        core.state.withLock { DiskSpace(total: $0.capacity, available: max(0, $0.capacity - $0.used)) }
    }

    package func lock(_ path: String) throws(DiskError) -> SimulatedFile {
        let file = try open(path, .create)
        let taken = core.state.withLock { $0.locks.insert(file.node).inserted }
        guard taken else { throw DiskError(.busy, operation: "flock", path: path) }
        file.holdsLock.store(true, ordering: .relaxed)
        return file
    }
}

/// Operations that faults can be aimed at.
package enum SimulatedOperation: String, Sendable {
    /// `open` of a file that is there, `create` of one that is not.
    case open, create, createDirectory, syncDirectory, rename, remove, list, status, write, read, truncate, allocate, sync
    case any
}

struct Fault {
    var operation: SimulatedOperation
    var kind: DiskError.Kind
    var skipping: Int
    var count: Int
}

/// An open file of the simulated disk.
package final class SimulatedFile: DiskFile {
    private let core: SimulatedDisk.Core
    let node: Int
    package let path: String
    let holdsLock = Atomic(false)

    init(core: SimulatedDisk.Core, node: Int, path: String) {
        self.core = core
        self.node = node
        self.path = path
    }

    package var descriptor: CInt? { nil }

    package func write(_ buffers: [ByteBuffer], at offset: Int) throws(DiskError) {
        var bytes: [UInt8] = []
        for buffer in buffers { bytes.append(contentsOf: buffer.readableBytesView) }
        try core.run(.write, path) { state throws(DiskError) in
            let room = state.write(node, bytes, at: offset)
            if room < bytes.count { throw DiskError(.noSpace, operation: "write", path: path) }
        }
    }

    package func read(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int {
        let slice: ArraySlice<UInt8> = try core.run(.read, path) { state throws(DiskError) in
            guard let content = state.nodes[node]?.content, offset < content.count else { return [] }
            return content[offset..<min(content.count, offset + count)]
        }
        buffer.writeBytes(slice)
        return slice.count
    }

    package func readCached(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int? {
        try read(into: &buffer, at: offset, count: count)
    }

    package func truncate(to size: Int) throws(DiskError) {
        try core.run(.truncate, path) { state throws(DiskError) in state.truncate(node, to: size) }
    }

    package func allocate(at offset: Int, count: Int) throws(DiskError) {
        try core.run(.allocate, path) { state throws(DiskError) in
            guard state.reserve(node, end: offset + count) else {
                throw DiskError(.noSpace, operation: "fallocate", path: path)
            }
        }
    }

    package func sync() throws(DiskError) {
        let hadStopped = core.state.withLock { $0.isStopped }
        do {
            try core.run(.sync, path) { state throws(DiskError) in
                if !state.pretendsToFlush { state.sync(node) }
            }
        } catch {
            // After a failed flush the pages count as clean: a later flush does not write them either. A process that
            // is gone has not asked for one.
            if !hadStopped { core.state.withLock { $0.forgetDirt(node) } }
            throw error
        }
    }

    package func size() throws(DiskError) -> Int {
        core.state.withLock { $0.nodes[node]?.content.count ?? 0 }
    }

    package func close() {
        if holdsLock.exchange(false, ordering: .relaxed) {
            core.state.withLock { _ = $0.locks.remove(node) }
        }
    }
}

extension SimulatedDisk.Core {
    func run<R: Sendable>(
        _ operation: SimulatedOperation, _ path: String,
        _ body: (inout SimulatedDisk.State) throws(DiskError) -> R
    ) throws(DiskError) -> R {
        let result: Result<R, DiskError> = state.withLock { state in
            if state.isStopped {
                return .failure(DiskError(.inputOutput, operation: operation.rawValue, path: path, detail: "stopped"))
            }
            state.operationCount += 1
            state.note(operation, path)
            if let kind = state.nextFault(operation) {
                return .failure(
                    DiskError(kind, operation: operation.rawValue, path: path, detail: "injected \(kind)"))
            }
            do throws(DiskError) {
                return .success(try body(&state))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough to draw crash images.
package struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    package init(seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
