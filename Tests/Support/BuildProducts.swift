internal import Glibc

/// Where the executables and the sources of this package are, seen from a running test.
package enum BuildProducts {
    /// The folder of the test bundle, beside which SwiftPM puts the executables it depends on.
    package static let folder: String = {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        precondition(count > 0, "/proc/self/exe cannot be read")
        let path = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return path.split(separator: "/").dropLast().map { "/" + $0 }.joined()
    }()

    package static func executable(_ name: String) -> String { folder + "/" + name }

    /// The checkout that this file was compiled from.
    package static let packageRoot: String = {
        let parts = #filePath.split(separator: "/")
        return parts.dropLast(3).map { "/" + $0 }.joined()
    }()

    /// A file or folder of the checkout.
    package static func source(_ path: String) -> String { packageRoot + "/" + path }

    /// Real market data, beside the checkout; `nil` where absent.
    package static let sharedData: String? = {
        let path = source("../shared/data")
        return access(path, R_OK) == 0 ? path : nil
    }()

    /// Whether the long proofs were asked for (`Tools/test --long`).
    package static let isLong = getenv("MARTLET_LONG").map { String(cString: $0) == "1" } ?? false
}
