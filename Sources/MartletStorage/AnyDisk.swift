package import NIOCore

/// A disk chosen at run time: the machine's, or a simulated one. Each operation costs one more call, which is
/// nothing beside a system call.
package struct AnyDisk: Disk {
    private let base: any Disk

    package init(_ base: some Disk) { self.base = base }

    package func open(_ path: String, _ mode: DiskOpenMode) throws(DiskError) -> AnyDiskFile {
        AnyDiskFile(try Self.open(base, path, mode))
    }

    private static func open(_ disk: some Disk, _ path: String, _ mode: DiskOpenMode) throws(DiskError) -> any DiskFile {
        try disk.open(path, mode)
    }

    package func createDirectory(_ path: String) throws(DiskError) { try base.createDirectory(path) }

    package func syncDirectory(_ path: String) throws(DiskError) { try base.syncDirectory(path) }

    package func rename(_ path: String, to target: String) throws(DiskError) { try base.rename(path, to: target) }

    package func remove(_ path: String) throws(DiskError) { try base.remove(path) }

    package func removeDirectory(_ path: String) throws(DiskError) { try base.removeDirectory(path) }

    package func list(_ path: String) throws(DiskError) -> [String] { try base.list(path) }

    package func status(_ path: String) throws(DiskError) -> DiskStatus { try base.status(path) }

    package func space(_ path: String) throws(DiskError) -> DiskSpace { try base.space(path) }

    package func lock(_ path: String) throws(DiskError) -> AnyDiskFile { AnyDiskFile(try Self.lock(base, path)) }

    private static func lock(_ disk: some Disk, _ path: String) throws(DiskError) -> any DiskFile {
        try disk.lock(path)
    }
}

/// An open file of an ``AnyDisk``.
package final class AnyDiskFile: DiskFile {
    private let base: any DiskFile

    fileprivate init(_ base: any DiskFile) { self.base = base }

    package func write(_ buffers: [ByteBuffer], at offset: Int) throws(DiskError) {
        try base.write(buffers, at: offset)
    }

    package func read(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int {
        try base.read(into: &buffer, at: offset, count: count)
    }

    package func readCached(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int? {
        try base.readCached(into: &buffer, at: offset, count: count)
    }

    package func truncate(to size: Int) throws(DiskError) { try base.truncate(to: size) }

    package func allocate(at offset: Int, count: Int) throws(DiskError) { try base.allocate(at: offset, count: count) }

    package func sync() throws(DiskError) { try base.sync() }

    package func size() throws(DiskError) -> Int { try base.size() }

    package func close() { base.close() }

    package var descriptor: CInt? { base.descriptor }
}
