package import NIOCore

/// The seam between the storage engine and a file system. ``PosixDisk`` is the real one, `SimulatedDisk`
/// (Tools/simulator) loses, tears and flips what a real one may.
///
/// The seam is coarse, one call per batch run, flush or read, so that an unspecialised generic costs
/// nothing that matters. Durability rules the engine relies on, and nothing more:
/// - file content survives a crash only up to the last ``DiskFile/sync()`` that returned;
/// - a directory's entries (create, rename, remove) survive only up to the last ``syncDirectory(_:)``;
/// - a rename replaces its target atomically, in memory and after a crash.
package protocol Disk: Sendable {
    associatedtype File: DiskFile

    func open(_ path: String, _ mode: DiskOpenMode) throws(DiskError) -> File
    /// Fails with `.exists` when there is something of that name.
    func createDirectory(_ path: String) throws(DiskError)
    /// Makes the directory's own entries durable.
    func syncDirectory(_ path: String) throws(DiskError)
    /// Replaces `target` if it exists.
    func rename(_ path: String, to target: String) throws(DiskError)
    func remove(_ path: String) throws(DiskError)
    /// The directory must be empty.
    func removeDirectory(_ path: String) throws(DiskError)
    /// Names in the directory, without `.` and `..`, in no particular order.
    func list(_ path: String) throws(DiskError) -> [String]
    func status(_ path: String) throws(DiskError) -> DiskStatus
    func space(_ path: String) throws(DiskError) -> DiskSpace
    /// Takes the exclusive lock on the file at `path`, creating it, for as long as the result is open.
    /// Throws `.busy` when another process holds it.
    func lock(_ path: String) throws(DiskError) -> File
}

/// An open file. Offsets and counts are in bytes. Writes come from the owner alone; `sync` and reads may
/// come from any thread at the same time.
package protocol DiskFile: AnyObject, Sendable {
    /// Writes the readable bytes of all buffers one after the other. On an error an unknown part of them
    /// may have been written.
    func write(_ buffers: [ByteBuffer], at offset: Int) throws(DiskError)
    /// Appends up to `count` bytes to `buffer`; fewer only at the end of the file. Returns how many.
    func read(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int
    /// As `read`, but answers with what is in memory: possibly fewer bytes, `nil` when the first is not.
    func readCached(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int?
    /// Sets the file's size; also gives back blocks reserved beyond it.
    func truncate(to size: Int) throws(DiskError)
    /// Reserves blocks without changing the file's size. A hint: `.unsupported` may be ignored.
    func allocate(at offset: Int, count: Int) throws(DiskError)
    /// Makes content and size durable (fdatasync). After a failure nothing is known of any write since
    /// the last success, and trying again proves nothing.
    func sync() throws(DiskError)
    func size() throws(DiskError) -> Int
    /// Idempotent. Reads after it fail.
    func close()
    /// File descriptor for sendfile; `nil` where there is none.
    var descriptor: CInt? { get }
}

package enum DiskOpenMode: Sendable {
    case read
    /// Read and write an existing file.
    case write
    /// Read and write; created when missing.
    case create
    /// Read and write; fails with `.exists` when there is such a file.
    case createNew
}

package struct DiskStatus: Equatable, Sendable {
    package var size: Int
    package var modified: Int64
    package var isDirectory: Bool

    /// `modified` is in milliseconds since 1970.
    package init(size: Int, modified: Int64, isDirectory: Bool) {
        self.size = size
        self.modified = modified
        self.isDirectory = isDirectory
    }
}

package struct DiskSpace: Equatable, Sendable {
    package var total: Int
    package var available: Int

    package init(total: Int, available: Int) {
        self.total = total
        self.available = available
    }
}

/// A failed file operation: which, on what, and why.
package struct DiskError: Error, Equatable, Sendable, CustomStringConvertible {
    package enum Kind: Sendable {
        case noSpace, inputOutput, notFound, exists, busy, tooManyFiles, readOnly, denied, unsupported, other
    }

    package var kind: Kind
    /// The operation in the file system's words: `write`, `fdatasync`, `rename` ...
    package var operation: String
    package var path: String
    /// The system's own text, or the simulated disk's.
    package var detail: String

    package init(_ kind: Kind, operation: String, path: String, detail: String = "") {
        self.kind = kind
        self.operation = operation
        self.path = path
        self.detail = detail
    }

    package var description: String {
        detail.isEmpty ? "\(operation) \(path): \(kind)" : "\(operation) \(path): \(detail)"
    }
}

/// Directory part of a path: everything before the last `/` that does not end it; `.` where there is none.
package func parentPath(of path: String) -> String {
    let slash = UInt8(ascii: "/")
    var rest = path.utf8[...]
    while rest.last == slash { rest.removeLast() }
    guard let index = rest.lastIndex(of: slash) else { return rest.isEmpty && !path.isEmpty ? "/" : "." }
    return index == path.startIndex ? "/" : String(path[..<index])
}

extension Disk {
    /// Whole content of a small file, `nil` when there is no such file.
    package func readAll(_ path: String, limit: Int) throws(DiskError) -> ByteBuffer? {
        let file: File
        do {
            file = try open(path, .read)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
        defer { file.close() }
        let size = try file.size()
        guard size <= limit else {
            throw DiskError(.other, operation: "read", path: path, detail: "\(size) bytes, at most \(limit) expected")
        }
        var buffer = ByteBuffer()
        buffer.reserveCapacity(size)
        _ = try file.read(into: &buffer, at: 0, count: size)
        return buffer
    }

    /// Replaces a small file so that a crash leaves either the old content or the new, never a mixture:
    /// write to `path.tmp`, flush it, rename, flush the directory.
    package func replaceAtomically(_ path: String, with content: ByteBuffer) throws(DiskError) {
        let temporary = path + ".tmp"
        let file = try open(temporary, .create)
        do {
            defer { file.close() }
            try file.truncate(to: 0)
            try file.write([content], at: 0)
            try file.sync()
        }
        try rename(temporary, to: path)
        try syncDirectory(parentPath(of: path))
    }

    /// Creates a directory and its missing parents, each one durable in its parent: also one that is there, for
    /// whoever made it may have been killed before it was.
    package func createDirectories(_ path: String) throws(DiskError) {
        let parent = parentPath(of: path)
        do throws(DiskError) {
            guard try status(path).isDirectory else {
                throw DiskError(.exists, operation: "mkdir", path: path, detail: "exists and is not a directory")
            }
            do throws(DiskError) {
                try syncDirectory(parent)
            } catch {
                switch error.kind {
                // Somebody else's directory, which we may pass through and not read, or a file system that nobody writes
                // to (squashfs, erofs), with ours mounted in it: nor did we make this one there.
                case .denied, .unsupported, .readOnly: break
                default: throw error
                }
            }
            return
        } catch {
            guard error.kind == .notFound else { throw error }
        }
        if parent != path { try createDirectories(parent) }
        do {
            try createDirectory(path)
        } catch {
            guard error.kind == .exists else { throw error }
        }
        try syncDirectory(parent)
    }

    package func exists(_ path: String) throws(DiskError) -> Bool {
        do {
            _ = try status(path)
            return true
        } catch {
            if error.kind == .notFound { return false }
            throw error
        }
    }

    /// Removes a file; a missing one is as good.
    package func removeIfPresent(_ path: String) throws(DiskError) {
        do {
            try remove(path)
        } catch {
            guard error.kind == .notFound else { throw error }
        }
    }
}
