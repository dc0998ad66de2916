package import MartletLogModel
package import NIOCore
import Synchronization

/// Condition of a log directory (promise 4: states with a clear error, not crashes).
package enum LogDirectoryState: Equatable, Sendable {
    case ok
    /// Writes are refused until ``LogDirectory/refreshDiskState()`` finds room again.
    case full(String)
    /// Final: after a failed flush nobody knows what the disk holds.
    case failed(String)
}

/// One log directory (`log.dirs` entry): whose it is, what it holds, how far it is durable, whether it
/// still takes writes. Usable from every thread; the partitions' logs are not.
///
/// Opening reads the folder's listing and a few small files, nothing per partition, so start does not
/// depend on how much data there is (promise 3).
package final class LogDirectory<D: Disk>: Sendable {
    package struct Configuration: Equatable, Sendable {
        /// Kept on disk and given up when the disk is full, so that commits, metadata and checkpoints go on.
        package var reserveBytes = 32 << 20
        /// Free space at which a full directory takes writes again, over and above the reserve.
        package var freeSpaceFloorBytes = 16 << 20

        package init() {}
    }

    private struct Table: Sendable {
        var checkpoints: [TopicPartition: PartitionCheckpoint] = [:]
        /// Folders found at start that are neither partitions nor on their way out (I12: never removed).
        var unknownNames: [String] = []
        var strayDeleted: [String] = []
        /// Folders of deleted partitions whose rows may still be in the checkpoint files; full paths.
        var foldersWithRows: Set<String> = []
        var isClosed = false
    }

    package let disk: D
    package let path: String
    package let meta: MetaProperties
    package let configuration: Configuration
    /// The previous run closed everything: no partition needs recovery.
    package let wasCleanShutdown: Bool
    /// Broker epoch in the clean-shutdown mark.
    package let previousBrokerEpoch: Int64?

    private let lockFile: D.File
    private let table: Guarded<Table>
    private let stateValue: Guarded<LogDirectoryState>
    /// 0 ok, 1 full, 2 failed: the hot path's copy of `stateValue`.
    private let stateCode: Atomic<UInt8>
    private let reserveHeld: Atomic<Bool>
    /// Serialises the writers of the checkpoint files and holds what was written last: unchanged files are not written
    /// again.
    private let checkpointWriter = Guarded<[String: ByteBuffer]>([:])

    private static var lockName: String { ".lock" }
    private static var reserveName: String { ".martlet-reserve" }
    package static var quarantineName: String { ".quarantine" }

    /// Opens or initialises the directory and locks it.
    ///
    /// - Parameters:
    ///   - clusterID: nil accepts what `meta.properties` says; a new directory needs one.
    ///   - newDirectoryID: identity of a directory that has none yet.
    ///   - origin: of a directory that has no identity yet.
    package static func open(
        _ path: String, disk: D, clusterID: String?, nodeID: BrokerID, newDirectoryID: UniversalID,
        origin: MetaProperties.Origin = .alone, configuration: Configuration = Configuration()
    ) throws(StorageError) -> LogDirectory {
        do {
            return try LogDirectory(
                path, disk: disk, clusterID: clusterID, nodeID: nodeID, newDirectoryID: newDirectoryID, origin: origin,
                configuration: configuration)
        } catch let error as StorageError {
            throw error
        } catch let error as DiskError {
            throw .file(error)
        } catch {
            throw .directoryRefused("cannot open \(path): \(error)")
        }
    }

    private init(
        _ path: String, disk: D, clusterID: String?, nodeID: BrokerID, newDirectoryID: UniversalID,
        origin: MetaProperties.Origin, configuration: Configuration
    ) throws {
        self.path = path
        self.disk = disk
        self.configuration = configuration
        try disk.createDirectories(path)
        do {
            lockFile = try disk.lock(path + "/" + Self.lockName)
        } catch {
            guard error.kind == .busy else { throw error }
            throw StorageError.directoryRefused(
                "log directory \(path) is in use by another process; stop it or choose another --data-dir")
        }
        // A process that was killed may have left names in memory alone. What is believed from here on must be on the disk.
        try disk.syncDirectory(path)
        let names = try disk.list(path)

        let metaPath = path + "/" + MetaProperties.fileName
        if let bytes = try disk.readAll(metaPath, limit: 1 << 16) {
            guard let found = MetaProperties(decoding: bytes) else {
                throw StorageError.directoryRefused("\(metaPath) is damaged; restore it or use an empty --data-dir")
            }
            if let clusterID, found.clusterID != clusterID {
                throw StorageError.directoryRefused(
                    "\(path) belongs to cluster \(found.clusterID), not \(clusterID); check --data-dir")
            }
            guard found.nodeID == nodeID else {
                throw StorageError.directoryRefused(
                    "\(path) belongs to node \(found.nodeID), not \(nodeID); check node.id and --data-dir")
            }
            meta = found
        } else {
            if let partition = names.lazy.compactMap(Self.partition(of:)).first {
                throw StorageError.directoryRefused(
                    "\(path) has partitions (\(partition) ...) but no \(MetaProperties.fileName); restore that file")
            }
            guard let clusterID else {
                throw StorageError.directoryRefused("\(path) is new and no cluster id was given")
            }
            meta = MetaProperties(
                clusterID: clusterID, nodeID: nodeID, directoryID: newDirectoryID, origin: origin)
            try disk.replaceAtomically(metaPath, with: meta.encode())
        }

        let markPath = path + "/" + CleanShutdownMark.fileName
        let mark = try disk.readAll(markPath, limit: 1 << 12)
        wasCleanShutdown = mark != nil
        previousBrokerEpoch = mark.map { CleanShutdownMark.decode($0) }

        var table = Table()
        let recoveryPoints = try Self.readCheckpoint(OffsetCheckpoint.recoveryPoint, in: path, disk)
        let logStarts = try Self.readCheckpoint(OffsetCheckpoint.logStart, in: path, disk)
        let highWatermarks = try Self.readCheckpoint(OffsetCheckpoint.highWatermark, in: path, disk)
        let compactedEnds = try Self.readCheckpoint(OffsetCheckpoint.compactedEnd, in: path, disk)
        // The files are written in a fixed order: where a later one is, an earlier one has been removed.
        let lacksLogStarts = logStarts == nil && (compactedEnds ?? recoveryPoints ?? highWatermarks) != nil
        let lacksCompactedEnds = compactedEnds == nil && (recoveryPoints ?? highWatermarks) != nil
        let isClean = mark != nil && recoveryPoints != nil
        let known = [recoveryPoints, logStarts, highWatermarks, compactedEnds].flatMap { $0?.keys.map(\.self) ?? [] }
        for partition in Set(known) {
            let recoveryPoint = recoveryPoints?[partition] ?? .zero
            table.checkpoints[partition] = PartitionCheckpoint(
                partition: partition, recoveryPoint: recoveryPoint,
                logStart: lacksLogStarts
                    ? try Self.firstBaseOffset(path + "/" + partition.description, disk)
                    : logStarts?[partition] ?? .zero,
                highWatermark: highWatermarks?[partition] ?? .zero,
                compactedEnd: lacksCompactedEnds ? recoveryPoint : compactedEnds?[partition] ?? .zero,
                isClean: isClean)
        }
        for name in names where !name.hasPrefix(".") {
            if let partition = Self.partition(of: name) {
                if table.checkpoints[partition] == nil {
                    table.checkpoints[partition] = PartitionCheckpoint(
                        partition: partition,
                        logStart: lacksLogStarts ? try Self.firstBaseOffset(path + "/" + name, disk) : .zero,
                        isClean: isClean)
                }
            } else if name.hasSuffix("-delete") {
                table.strayDeleted.append(name)
                try Self.forgetRows(ofDeleted: name, in: path, disk, &table)
            } else if !Self.knownFiles.contains(name), !name.hasSuffix(".tmp") {
                table.unknownNames.append(name)
            }
        }
        self.table = Guarded(table)
        self.stateValue = Guarded(.ok)
        self.stateCode = Atomic(0)

        // The mark counts once: from here on the directory is dirty until the next clean close.
        if mark != nil {
            try disk.remove(markPath)
            try disk.syncDirectory(path)
        }
        reserveHeld = Atomic(false)
        restoreReserve()
    }

    /// A crash after a deletion can leave the checkpoint rows of the partition that is gone, and a new one of
    /// the name must not be measured by them. Its folder has its `partition.metadata` for as long as that may
    /// be so.
    private static func forgetRows(ofDeleted name: String, in path: String, _ disk: D, _ table: inout Table) throws {
        let folder = path + "/" + name
        guard try disk.exists(folder + "/" + LogFileName.partitionMetadata) else { return }
        table.foldersWithRows.insert(folder)
        let former = name.dropLast(deletedSuffix(.zero).utf8.count)
        for (partition, checkpoint) in table.checkpoints
        where former == partition.description
            || (name.utf8.count == nameLimit && partition.description.hasPrefix(former))
        {
            table.checkpoints[partition] = PartitionCheckpoint(partition: partition, isClean: checkpoint.isClean)
        }
    }

    /// Longest name of a file or folder, in bytes.
    private static var nameLimit: Int { 255 }

    private static func deletedSuffix(_ id: UniversalID) -> String { ".\(id)-delete" }

    /// A partition's folder name with a suffix; cut where a long topic name leaves no room for it.
    static func name(of partition: TopicPartition, suffix: String) -> String {
        partition.description.prefix(nameLimit - suffix.utf8.count) + suffix
    }

    private static var knownFiles: Set<String> {
        [
            MetaProperties.fileName, OffsetCheckpoint.recoveryPoint, OffsetCheckpoint.logStart,
            OffsetCheckpoint.highWatermark, OffsetCheckpoint.compactedEnd, "lost+found", "bootstrap.checkpoint",
        ]
    }

    private static func readCheckpoint(
        _ name: String, in path: String, _ disk: D
    ) throws -> [TopicPartition: Offset]? {
        guard let bytes = try disk.readAll(path + "/" + name, limit: OffsetCheckpoint.byteLimit) else { return nil }
        guard let offsets = OffsetCheckpoint.decode(bytes) else {
            throw StorageError.directoryRefused(
                "\(path)/\(name) is damaged; restore it, or remove it: "
                    + OffsetCheckpoint.consequence(ofRemoving: name))
        }
        return offsets
    }

    /// Base offset of the first segment in a partition's folder; zero without one.
    private static func firstBaseOffset(_ folder: String, _ disk: D) throws(DiskError) -> Offset {
        do {
            let bases = try disk.list(folder).compactMap { LogFileName.parse($0) }
                .filter { $0.kind == LogFileName.log && $0.offset <= Offset.storedLimit }.map(\.offset)
            return Offset(bases.min() ?? 0)
        } catch {
            guard error.kind == .notFound else { throw error }
            return .zero
        }
    }

    /// `topic-partition` names; nil for anything else.
    package static func partition(of name: String) -> TopicPartition? {
        guard let dash = name.lastIndex(of: "-"), dash != name.startIndex else { return nil }
        let digits = name[name.index(after: dash)...]
        guard !digits.isEmpty, digits.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }), let number = Int32(digits),
            String(number) == digits
        else { return nil }
        let topic = String(name[..<dash])
        guard TopicName.problem(topic) == nil else { return nil }
        return TopicPartition(topic, number)
    }

    // MARK: Partitions

    /// Partitions known from folders and checkpoint files, sorted.
    package var partitions: [TopicPartition] { table.withLock { $0.checkpoints.keys.sorted() } }

    /// Names in the directory that nobody knows; they are left alone and reported.
    package var unknownNames: [String] { table.withLock { $0.unknownNames.sorted() } }

    package func folder(of partition: TopicPartition) -> String { path + "/" + partition.description }

    /// The partition's durable offsets; made on first use.
    package func checkpoint(of partition: TopicPartition) -> PartitionCheckpoint {
        table.withLock { table in
            if let known = table.checkpoints[partition] { return known }
            // Nothing on disk that could need a check; its log says otherwise as soon as it is opened.
            let new = PartitionCheckpoint(partition: partition, isClean: true)
            table.checkpoints[partition] = new
            return new
        }
    }

    /// A fresh start for a name whose former topic is gone.
    func newCheckpoint(of partition: TopicPartition) -> PartitionCheckpoint {
        table.withLock { table in
            let new = PartitionCheckpoint(partition: partition, isClean: false)
            table.checkpoints[partition] = new
            return new
        }
    }

    /// Bytes of the partition's files, for DescribeLogDirs. Reads the folder; call it off the event loop.
    package func size(of partition: TopicPartition) throws(StorageError) -> Int {
        let folder = folder(of: partition)
        do throws(DiskError) {
            var total = 0
            for name in try disk.list(folder) {
                do {
                    total += try disk.status(folder + "/" + name).size
                } catch {
                    // A segment deleted since the listing counts nothing.
                    guard error.kind == .notFound else { throw error }
                }
            }
            return total
        } catch {
            if error.kind == .notFound { return 0 }
            throw .file(error)
        }
    }

    /// Moves a deleted partition's folder out of the way so that the name is free at once; the returned
    /// work removes it for good. The log must be closed. One rename: cheap enough for an event loop, where
    /// it must happen before the name can be used again.
    package func deletePartition(
        _ partition: TopicPartition, uniqueSuffix: UniversalID
    ) throws(StorageError) -> FolderRemoval<D>? {
        let target = path + "/" + Self.name(of: partition, suffix: Self.deletedSuffix(uniqueSuffix))
        table.withLock { $0.checkpoints[partition]?.setDeleted() }
        var isThere = true
        do {
            try disk.rename(folder(of: partition), to: target)
        } catch {
            guard error.kind == .notFound else { throw record(error) }
            isThere = false
        }
        table.withLock { table in
            table.checkpoints[partition] = nil
            if isThere { table.foldersWithRows.insert(target) }
        }
        return isThere ? FolderRemoval(directory: self, folder: target) : nil
    }

    /// Folders of partitions whose deletion a previous run did not finish.
    package func unfinishedDeletions() -> [FolderRemoval<D>] {
        table.withLock { table in
            defer { table.strayDeleted = [] }
            return table.strayDeleted.map { FolderRemoval(directory: self, folder: path + "/" + $0) }
        }
    }

    // MARK: Checkpoints

    /// Writes the checkpoint files of all partitions; blocks on their flushes. Afterwards the proposed log
    /// starts are durable. Offsets never fall behind what a partition's owner has stored before the call.
    ///
    /// - Parameter change: runs while nobody else writes the files, for offsets that fall.
    package func writeCheckpoints(after change: () -> Void = {}) throws(StorageError) {
        let outcome: Result<Void, DiskError> = checkpointWriter.withLock { written in
            change()
            let (checkpoints, emptied) = table.withLock {
                ($0.checkpoints.values.sorted { $0.partition < $1.partition }, $0.foldersWithRows)
            }
            var recovery: [(TopicPartition, Offset)] = []
            var starts: [(TopicPartition, Offset)] = []
            var marks: [(TopicPartition, Offset)] = []
            var compacted: [(TopicPartition, Offset)] = []
            recovery.reserveCapacity(checkpoints.count)
            for checkpoint in checkpoints {
                let start = checkpoint.proposedLogStart
                recovery.append((checkpoint.partition, checkpoint.recoveryPoint))
                if start > .zero { starts.append((checkpoint.partition, start)) }
                if checkpoint.compactedEnd > .zero {
                    compacted.append((checkpoint.partition, checkpoint.compactedEnd))
                }
                if checkpoint.highWatermark > .zero {
                    marks.append((checkpoint.partition, checkpoint.highWatermark))
                }
            }
            return Result { () throws(DiskError) in
                // Log starts first: a recovery point never refers to a log that starts later than recorded.
                // The order also tells the next start which file somebody has removed.
                try replace(OffsetCheckpoint.logStart, OffsetCheckpoint.encode(starts), &written)
                for (checkpoint, start) in zip(checkpoints, starts.isEmpty ? [] : allStarts(checkpoints, starts)) {
                    checkpoint.logStartIsDurable(start)
                }
                try replace(OffsetCheckpoint.compactedEnd, OffsetCheckpoint.encode(compacted), &written)
                try replace(OffsetCheckpoint.recoveryPoint, OffsetCheckpoint.encode(recovery), &written)
                for (checkpoint, point) in zip(checkpoints, recovery) { checkpoint.recoveryPointIsDurable(point.1) }
                try replace(OffsetCheckpoint.highWatermark, OffsetCheckpoint.encode(marks), &written)
                for folder in emptied.sorted() { try rowsAreGone(of: folder) }
            }
        }
        do {
            try outcome.get()
        } catch {
            throw record(error)
        }
    }

    /// The checkpoint files on disk know nothing any more of the partition whose folder this was.
    private func rowsAreGone(of folder: String) throws(DiskError) {
        do throws(DiskError) {
            try disk.removeIfPresent(folder + "/" + LogFileName.partitionMetadata)
            try disk.syncDirectory(folder)
        } catch {
            guard error.kind == .notFound else { throw error }
        }
        table.withLock { _ = $0.foldersWithRows.remove(folder) }
    }

    fileprivate func mayHaveRows(_ folder: String) -> Bool {
        table.withLock { $0.foldersWithRows.contains(folder) }
    }

    /// Starts as written, for every checkpoint in order (zero where none was written).
    private func allStarts(
        _ checkpoints: [PartitionCheckpoint], _ written: [(TopicPartition, Offset)]
    ) -> [Offset] {
        var next = written.makeIterator()
        var current = next.next()
        return checkpoints.map { checkpoint in
            guard let (partition, start) = current, partition == checkpoint.partition else { return .zero }
            current = next.next()
            return start
        }
    }

    private func replace(
        _ name: String, _ content: ByteBuffer, _ written: inout [String: ByteBuffer]
    ) throws(DiskError) {
        if written[name] == content { return }
        written[name] = nil
        try replaceAtomically(path + "/" + name, with: content)
        written[name] = content
    }

    /// ``Disk/replaceAtomically(_:with:)`` for small files that go on being written when the disk is full: if there is no
    /// space, once more with the reserve.
    package func replaceAtomically(_ filePath: String, with content: ByteBuffer) throws(DiskError) {
        do {
            try disk.replaceAtomically(filePath, with: content)
        } catch {
            guard error.kind == .noSpace, releaseReserve() else { throw error }
            try disk.replaceAtomically(filePath, with: content)
        }
    }

    /// Writes all checkpoints and, if `clean`, the mark that spares the next start any recovery. All logs
    /// must be closed. Releases the lock.
    ///
    /// The mark speaks for every partition. Without it the next start checks from the recovery points, which
    /// is little; so it is left out when a log was not closed cleanly, or was never opened and thus never
    /// recovered since a crash.
    package func close(clean: Bool, brokerEpoch: Int64 = -1) throws(StorageError) {
        let wasClosed = table.withLock { table in
            defer { table.isClosed = true }
            return table.isClosed
        }
        if wasClosed { return }
        defer { lockFile.close() }
        guard clean, stateCode.load(ordering: .acquiring) != 2 else { return }
        try writeCheckpoints()
        guard table.withLock({ $0.checkpoints.values.allSatisfy(\.isClean) }) else { return }
        do {
            try disk.replaceAtomically(
                path + "/" + CleanShutdownMark.fileName, with: CleanShutdownMark.encode(brokerEpoch: brokerEpoch))
        } catch {
            throw record(error)
        }
    }

    // MARK: State

    package var state: LogDirectoryState { stateValue.withLock { $0 } }

    /// Free and total bytes of the file system.
    package func space() throws(StorageError) -> DiskSpace {
        do {
            return try disk.space(path)
        } catch {
            throw .file(error)
        }
    }

    /// Throws unless the directory takes writes; one atomic load when it does.
    func requireWritable(mayUseReserve: Bool) throws(StorageError) {
        let code = stateCode.load(ordering: .relaxed)
        if code == 0 || (code == 1 && mayUseReserve) { return }
        switch state {
        case .ok: return
        case .full(let reason): throw .diskFull(reason)
        case .failed(let reason): throw .directoryFailed(reason)
        }
    }

    func isWritable(mayUseReserve: Bool) -> Bool {
        let code = stateCode.load(ordering: .relaxed)
        return code == 0 || (code == 1 && mayUseReserve)
    }

    func requireAlive() throws(StorageError) {
        if stateCode.load(ordering: .relaxed) != 2 { return }
        if case .failed(let reason) = state { throw .directoryFailed(reason) }
    }

    /// Turns a failed operation into the directory's new state and the error to report.
    func record(_ error: DiskError, isFlush: Bool = false) -> StorageError {
        if isFlush || error.kind == .inputOutput || error.kind == .readOnly {
            fail("\(error)")
            return .directoryFailed("\(error)")
        }
        guard error.kind == .noSpace else { return .file(error) }
        stateValue.withLock { state in
            switch state {
            case .ok: state = .full("\(error)")
            case .full, .failed: return
            }
            stateCode.store(1, ordering: .releasing)
        }
        releaseReserve()
        return .diskFull("\(error)")
    }

    /// Takes the directory out of service for good.
    package func fail(_ reason: String) {
        stateValue.withLock { state in
            switch state {
            case .ok, .full: state = .failed(reason)
            case .failed: return
            }
            stateCode.store(2, ordering: .releasing)
        }
    }

    /// Looks whether a full directory has room again; call it every second or so, off the event loop.
    @discardableResult
    package func refreshDiskState() -> LogDirectoryState {
        guard stateCode.load(ordering: .acquiring) == 1 else { return state }
        let needed = configuration.freeSpaceFloorBytes
            + (reserveHeld.load(ordering: .acquiring) ? 0 : configuration.reserveBytes)
        do {
            guard try disk.space(path).available >= needed else { return state }
        } catch {
            return state
        }
        guard restoreReserve() else { return state }
        stateValue.withLock { state in
            guard case .full = state else { return }
            state = .ok
            stateCode.store(0, ordering: .releasing)
        }
        return state
    }

    /// Gives the reserved blocks back to the file system. Returns whether there were any.
    @discardableResult
    private func releaseReserve() -> Bool {
        guard reserveHeld.exchange(false, ordering: .acquiringAndReleasing) else { return false }
        do {
            try disk.removeIfPresent(path + "/" + Self.reserveName)
            return true
        } catch {
            return false
        }
    }

    /// Reserves what is not reserved yet. False when there is no room for it; a file system that cannot
    /// reserve goes without.
    @discardableResult
    private func restoreReserve() -> Bool {
        guard configuration.reserveBytes > 0, !reserveHeld.load(ordering: .acquiring) else { return true }
        let reservePath = path + "/" + Self.reserveName
        do {
            let file = try disk.open(reservePath, .create)
            defer { file.close() }
            try file.allocate(at: 0, count: configuration.reserveBytes)
            reserveHeld.store(true, ordering: .releasing)
            return true
        } catch {
            // Without a reserve the directory still works; what could be reserved goes back.
            do { try disk.removeIfPresent(reservePath) } catch { return false }
            return error.kind == .unsupported
        }
    }
}

/// Removes a deleted partition's folder. Run it off the event loop.
package struct FolderRemoval<D: Disk>: Sendable {
    let directory: LogDirectory<D>
    package let folder: String

    package func run() throws(StorageError) {
        if directory.mayHaveRows(folder) { try directory.writeCheckpoints() }
        let disk = directory.disk
        do {
            try disk.syncDirectory(parentPath(of: folder))
            for name in try disk.list(folder) { try disk.removeIfPresent(folder + "/" + name) }
            try disk.removeDirectory(folder)
            try disk.syncDirectory(parentPath(of: folder))
        } catch {
            guard error.kind == .notFound else { throw .file(error) }
        }
    }
}

/// Makes proposed log starts durable; see ``PartitionLog/deleteRecords(before:highWatermark:)``.
package struct LogStartWork<D: Disk>: Sendable {
    let directory: LogDirectory<D>
    let checkpoint: PartitionCheckpoint
    let target: Offset

    /// Blocks on the checkpoint file's flush, unless another partition's run has carried ours.
    package func run() throws(StorageError) {
        if checkpoint.durableLogStart >= target { return }
        try directory.writeCheckpoints()
    }
}

/// Makes offsets durable that a log has asked for; see ``PartitionLog/allowGaps(upTo:)``.
package struct CheckpointWork<D: Disk>: Sendable {
    let directory: LogDirectory<D>

    /// Blocks on the checkpoint files' flush.
    package func run() throws(StorageError) { try directory.writeCheckpoints() }
}
