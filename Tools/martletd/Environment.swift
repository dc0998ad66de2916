import Glibc

/// The process's surroundings: variables, the place for state, small files.
enum Environment {
    static var all: [String: String] {
        var result: [String: String] = [:]
        var entry = environ
        // SAFETY: the C library's environment block is not changed by this process after start.
        while let text = entry.pointee {
            let line = String(cString: text)
            if let separator = line.firstIndex(of: "=") {
                result[String(line[..<separator])] = String(line[line.index(after: separator)...])
            }
            entry += 1
        }
        return result
    }

    /// systemd's directory, else root's, else the user's: never the temporary directory, which is emptied.
    static var stateDirectory: String {
        let variables = all
        if let directory = variables["STATE_DIRECTORY"], !directory.isEmpty { return directory }
        if getuid() == 0 { return "/var/lib/martlet" }
        if let directory = variables["XDG_STATE_HOME"], directory.hasPrefix("/") { return directory + "/martlet" }
        return (variables["HOME"] ?? "/var/lib") + "/.local/state/martlet"
    }

    /// Text of a file of at most 1 MiB, `nil` if it cannot be read (`errno` says why).
    static func read(file path: String) -> String? {
        let descriptor = open(path, O_RDONLY)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 * 1024)
        while bytes.count < 1 << 20 {
            let count = chunk.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
            guard count >= 0 else { return nil }
            if count == 0 { break }
            bytes += chunk[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
