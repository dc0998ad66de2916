internal import Glibc

/// A folder of its own below the system's temporary folder, removed with everything in it by ``remove()`` or
/// when the last reference goes.
package final class TemporaryFolder: Sendable {
    package let path: String

    package init() {
        let base = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var template = Array((base + "/martlet-test-XXXXXX").utf8CString)
        precondition(mkdtemp(&template) != nil, "no temporary folder can be made in \(base)")
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { remove() }

    package func file(_ name: String) -> String { path + "/" + name }

    package func remove() { Self.removeTree(path) }

    private static func removeTree(_ path: String) {
        if let directory = opendir(path) {
            while let entry = readdir(directory) {
                // SAFETY: `d_name` is a null-terminated text within the entry that readdir returned.
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name != "." && name != ".." {
                    if entry.pointee.d_type == UInt8(DT_DIR) {
                        removeTree(path + "/" + name)
                    } else {
                        unlink(path + "/" + name)
                    }
                }
            }
            closedir(directory)
        }
        rmdir(path)
    }
}
