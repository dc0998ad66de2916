import CMartletPlatform
import Glibc
package import NIOCore
import Synchronization

/// The machine's file system.
package struct PosixDisk: Disk {
    package init() {}

    package func open(_ path: String, _ mode: DiskOpenMode) throws(DiskError) -> PosixFile {
        let flag: martlet_open_mode
        switch mode {
        case .read: flag = MARTLET_OPEN_READ
        case .write: flag = MARTLET_OPEN_WRITE
        case .create: flag = MARTLET_OPEN_CREATE
        case .createNew: flag = MARTLET_OPEN_CREATE_NEW
        }
        let descriptor = martlet_open(path, CInt(flag.rawValue))
        try check(descriptor, "open", path)
        return PosixFile(descriptor: descriptor, path: path)
    }

    package func createDirectory(_ path: String) throws(DiskError) {
        if mkdir(path, 0o755) != 0 { throw DiskError(errno: errno, operation: "mkdir", path: path) }
    }

    package func syncDirectory(_ path: String) throws(DiskError) {
        let descriptor = martlet_open(path, CInt(MARTLET_OPEN_DIRECTORY.rawValue))
        try check(descriptor, "open directory", path)
        defer { _ = martlet_close(descriptor) }
        try check(martlet_sync_all(descriptor), "fsync", path)
    }

    package func rename(_ path: String, to target: String) throws(DiskError) {
        if Glibc.rename(path, target) != 0 {
            throw DiskError(errno: errno, operation: "rename to \(target)", path: path)
        }
    }

    package func remove(_ path: String) throws(DiskError) {
        if unlink(path) != 0 { throw DiskError(errno: errno, operation: "unlink", path: path) }
    }

    package func removeDirectory(_ path: String) throws(DiskError) {
        if rmdir(path) != 0 { throw DiskError(errno: errno, operation: "rmdir", path: path) }
    }

    package func list(_ path: String) throws(DiskError) -> [String] {
        guard let directory = opendir(path) else { throw DiskError(errno: errno, operation: "opendir", path: path) }
        defer { closedir(directory) }
        var names: [String] = []
        errno = 0
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { tuple in
                // SAFETY: d_name is a NUL-terminated array inside the entry, valid until the next readdir.
                tuple.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
            errno = 0
        }
        if errno != 0 { throw DiskError(errno: errno, operation: "readdir", path: path) }
        return names
    }

    package func status(_ path: String) throws(DiskError) -> DiskStatus {
        var status = CMartletPlatform.martlet_status()
        try check(martlet_status(path, &status), "stat", path)
        return DiskStatus(
            size: Int(status.size), modified: status.modified_milliseconds, isDirectory: status.is_directory != 0)
    }

    package func space(_ path: String) throws(DiskError) -> DiskSpace {
        var space = CMartletPlatform.martlet_space()
        try check(martlet_space(path, &space), "statvfs", path)
        return DiskSpace(total: Int(space.total), available: Int(space.available))
    }

    package func lock(_ path: String) throws(DiskError) -> PosixFile {
        let file = try open(path, .create)
        let result = file.withDescriptor { martlet_lock($0) }
        if result < 0 {
            file.close()
            throw DiskError(errno: -result, operation: "flock", path: path)
        }
        return file
    }
}

private func check(_ result: CInt, _ operation: String, _ path: String) throws(DiskError) {
    if result < 0 { throw DiskError(errno: -result, operation: operation, path: path) }
}

/// A file descriptor, closed with the last reference.
package final class PosixFile: DiskFile {
    package let path: String
    /// -1 once closed. Closing while another thread reads is kept apart by the owners' reference counts
    /// (``SegmentFile``): `close` is called by the last of them.
    private let descriptorValue: Atomic<CInt>

    fileprivate init(descriptor: CInt, path: String) {
        self.descriptorValue = Atomic(descriptor)
        self.path = path
    }

    deinit { close() }

    package var descriptor: CInt? {
        let value = descriptorValue.load(ordering: .relaxed)
        return value < 0 ? nil : value
    }

    fileprivate func withDescriptor<R>(_ body: (CInt) -> R) -> R { body(descriptorValue.load(ordering: .relaxed)) }

    package func write(_ buffers: [ByteBuffer], at offset: Int) throws(DiskError) {
        if buffers.isEmpty { return }
        let descriptor = descriptorValue.load(ordering: .relaxed)
        let result: Int64
        if buffers.count == 1 {
            result = buffers[0].withUnsafeReadableBytes { bytes in
                var part = martlet_buffer(base: bytes.baseAddress, length: bytes.count)
                return martlet_write_all(descriptor, &part, 1, Int64(offset))
            }
        } else {
            result = withUnsafeTemporaryAllocation(of: martlet_buffer.self, capacity: buffers.count) { parts in
                // SAFETY: the pointers outlive the closures that produce them because `buffers` holds every
                // storage alive until after the call and nobody mutates a ByteBuffer held here by value.
                for index in buffers.indices {
                    parts.initializeElement(
                        at: index,
                        to: buffers[index].withUnsafeReadableBytes {
                            martlet_buffer(base: $0.baseAddress, length: $0.count)
                        })
                }
                return withExtendedLifetime(buffers) {
                    martlet_write_all(descriptor, parts.baseAddress, parts.count, Int64(offset))
                }
            }
        }
        if result < 0 { throw DiskError(errno: CInt(-result), operation: "write", path: path) }
    }

    package func read(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int {
        let descriptor = descriptorValue.load(ordering: .relaxed)
        var result: Int64 = 0
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { space in
            result = martlet_read_all(descriptor, space.baseAddress, count, Int64(offset))
            return result < 0 ? 0 : Int(result)
        }
        if result < 0 { throw DiskError(errno: CInt(-result), operation: "read", path: path) }
        return Int(result)
    }

    package func readCached(into buffer: inout ByteBuffer, at offset: Int, count: Int) throws(DiskError) -> Int? {
        let descriptor = descriptorValue.load(ordering: .relaxed)
        var result: Int64 = 0
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { space in
            result = martlet_read_cached(descriptor, space.baseAddress, count, Int64(offset))
            return result < 0 ? 0 : Int(result)
        }
        if result == -Int64(EAGAIN) { return nil }
        if result < 0 { throw DiskError(errno: CInt(-result), operation: "read", path: path) }
        return Int(result)
    }

    package func truncate(to size: Int) throws(DiskError) {
        try check(withDescriptor { martlet_truncate($0, Int64(size)) }, "ftruncate", path)
    }

    package func allocate(at offset: Int, count: Int) throws(DiskError) {
        try check(withDescriptor { martlet_allocate($0, Int64(offset), Int64(count)) }, "fallocate", path)
    }

    package func sync() throws(DiskError) {
        try check(withDescriptor { martlet_sync_data($0) }, "fdatasync", path)
    }

    package func size() throws(DiskError) -> Int {
        var status = CMartletPlatform.martlet_status()
        try check(withDescriptor { martlet_descriptor_status($0, &status) }, "fstat", path)
        return Int(status.size)
    }

    package func close() {
        let descriptor = descriptorValue.exchange(-1, ordering: .relaxed)
        if descriptor >= 0 { _ = martlet_close(descriptor) }
    }
}

extension DiskError {
    init(errno: CInt, operation: String, path: String) {
        let kind: Kind
        switch errno {
        case ENOSPC, EDQUOT, EFBIG: kind = .noSpace
        case EIO: kind = .inputOutput
        case ENOENT, ENOTDIR: kind = .notFound
        case EEXIST, ENOTEMPTY: kind = .exists
        case EWOULDBLOCK, EBUSY: kind = .busy
        case EMFILE, ENFILE: kind = .tooManyFiles
        case EROFS: kind = .readOnly
        case EACCES, EPERM: kind = .denied
        case EOPNOTSUPP, ENOSYS, EINVAL: kind = .unsupported
        case _: kind = .other
        }
        var text = [CChar](repeating: 0, count: 128)
        let detail = text.withUnsafeMutableBufferPointer { buffer in
            // SAFETY: the text is copied into a String before the buffer goes.
            String(cString: martlet_error_text(errno, buffer.baseAddress, buffer.count))
        }
        self.init(kind, operation: operation, path: path, detail: detail)
    }
}
