package import MartletLogModel
import NIOCore

/// Everything that must reach the disk so that the log is durable up to ``endOffset``. Made by the owner,
/// run by a flusher thread, its result given back to the owner.
package struct FlushWork<D: Disk>: Sendable {
    enum Step: Sendable {
        case file(SegmentFile<D>)
        /// A file that is complete: gives back the blocks reserved behind its end, then flushes it.
        case sealedFile(SegmentFile<D>, size: Int)
        case directory(String)
        /// Small files that are replaced as a whole.
        case replace(String, ByteBuffer)
    }

    let directory: LogDirectory<D>
    let steps: [Step]
    /// Dirt up to this sequence number is gone when the work succeeds.
    let sequence: UInt64
    /// Exclusive.
    package let endOffset: Offset

    /// Number of fdatasync and fsync calls this will make.
    package var flushCount: Int { steps.count }

    /// Blocks until the disk has everything. Call it away from the event loop, once.
    package func run() -> FlushResult {
        let disk = directory.disk
        var lacksSmallFiles = false
        do throws(DiskError) {
            for step in steps {
                switch step {
                case .file(let file):
                    try file.file.sync()
                case .sealedFile(let file, let size):
                    try file.file.truncate(to: size)
                    try file.file.sync()
                case .directory(let path):
                    try disk.syncDirectory(path)
                case .replace(let path, let content):
                    if try !replace(path, content) { lacksSmallFiles = true }
                }
            }
            return FlushResult(
                endOffset: endOffset, sequence: sequence, lacksSmallFiles: lacksSmallFiles, failure: nil)
        } catch {
            return FlushResult(
                endOffset: endOffset, sequence: sequence, lacksSmallFiles: lacksSmallFiles, failure: error)
        }
    }

    /// False when there is no space, not even with the reserve: these files can be derived from the log,
    /// so a full disk must not stop what is in the log already from becoming durable.
    private func replace(_ path: String, _ content: ByteBuffer) throws(DiskError) -> Bool {
        for _ in 0..<2 {
            do throws(DiskError) {
                // The rename becomes durable with the directory, which is always a later step.
                let temporary = path + ".tmp"
                let file = try directory.disk.open(temporary, .create)
                defer { file.close() }
                try file.truncate(to: 0)
                try file.write([content], at: 0)
                try file.sync()
                try directory.disk.rename(temporary, to: path)
                return true
            } catch {
                guard error.kind == .noSpace, error.operation != "fdatasync" else { throw error }
                // Gives up the reserve.
                _ = directory.record(error)
            }
        }
        return false
    }
}

package struct FlushResult: Sendable {
    package let endOffset: Offset
    let sequence: UInt64
    /// There was no space for small files that can be derived; they are tried again with the next flush.
    package let lacksSmallFiles: Bool
    package let failure: DiskError?

    /// Too many open files: nothing was asked of the disk, and everything stays dirty for another try.
    package var canBeRetried: Bool { failure?.kind == .tooManyFiles }
}

/// What has changed on disk since the last successful flush. Items carry the sequence number of their last
/// change: a work that succeeds clears what was there when it was made and has not changed since. One work
/// is under way at a time, because two would write the same small files at once.
struct DirtySet<D: Disk> {
    private enum Item {
        case file(SegmentFile<D>, sealedSize: Int?)
        case directory(String)
        case replace(String, ByteBuffer)
    }

    private var items: [(item: Item, sequence: UInt64)] = []
    private var sequence: UInt64 = 0

    var isClean: Bool { items.isEmpty }

    mutating func markFile(_ file: SegmentFile<D>, sealedSize: Int? = nil) {
        sequence += 1
        for index in items.indices {
            if case .file(let known, let size) = items[index].item, known === file {
                items[index] = (.file(file, sealedSize: sealedSize ?? size), sequence)
                return
            }
        }
        items.append((.file(file, sealedSize: sealedSize), sequence))
    }

    /// Returns the number that a successful flush must have reached.
    @discardableResult
    mutating func markDirectory(_ path: String) -> UInt64 {
        sequence += 1
        for index in items.indices {
            if case .directory(let known) = items[index].item, known == path {
                items[index].sequence = sequence
                return sequence
            }
        }
        items.append((.directory(path), sequence))
        return sequence
    }

    mutating func markReplacement(_ path: String, _ content: ByteBuffer) {
        sequence += 1
        for index in items.indices {
            if case .replace(let known, _) = items[index].item, known == path {
                items[index] = (.replace(path, content), sequence)
                markDirectory(parentPath(of: path))
                return
            }
        }
        items.append((.replace(path, content), sequence))
        markDirectory(parentPath(of: path))
    }

    /// Drops a file that is not to be flushed any more because it is deleted.
    mutating func forget(_ file: SegmentFile<D>) {
        items.removeAll {
            if case .file(let known, _) = $0.item { return known === file }
            return false
        }
    }

    func hasReplacement(_ path: String) -> Bool {
        items.contains {
            if case .replace(let known, _) = $0.item { return known == path }
            return false
        }
    }

    /// Drops a small file that is not to be written any more because it is deleted.
    mutating func forgetReplacement(_ path: String) {
        items.removeAll {
            if case .replace(let known, _) = $0.item { return known == path }
            return false
        }
    }

    mutating func take(_ directory: LogDirectory<D>, endOffset: Offset) -> FlushWork<D> {
        // Files before the directories that name them; the order among files is the order of writing.
        var steps: [FlushWork<D>.Step] = []
        steps.reserveCapacity(items.count)
        for (item, _) in items {
            switch item {
            case .file(let file, let size?): steps.append(.sealedFile(file, size: size))
            case .file(let file, nil): steps.append(.file(file))
            case .replace(let path, let content): steps.append(.replace(path, content))
            case .directory: break
            }
        }
        for (item, _) in items {
            if case .directory(let path) = item { steps.append(.directory(path)) }
        }
        return FlushWork(directory: directory, steps: steps, sequence: sequence, endOffset: endOffset)
    }

    mutating func completed(_ sequence: UInt64, keepingReplacements: Bool) {
        items.removeAll {
            if keepingReplacements {
                switch $0.item {
                // A rename to come needs its directory flushed again.
                case .replace, .directory: return false
                case .file: break
                }
            }
            return $0.sequence <= sequence
        }
    }
}
