/// Compression of the record section of a batch: bits 0-2 of the attributes.
package enum CompressionCodec: UInt8, CaseIterable, Sendable {
    case none = 0
    case gzip = 1
    case snappy = 2
    case lz4 = 3
    /// Only from Produce v7 and Fetch v10 on (KIP-110); older requests answer 76.
    case zstd = 4

    /// Kafka's name, as in `compression.type`.
    package var name: String {
        switch self {
        case .none: "none"
        case .gzip: "gzip"
        case .snappy: "snappy"
        case .lz4: "lz4"
        case .zstd: "zstd"
        }
    }

    /// The codec of Kafka's name; `uncompressed` is the broker's word for `none`.
    package init?(name: String) {
        switch name {
        case "none", "uncompressed": self = .none
        case "gzip": self = .gzip
        case "snappy": self = .snappy
        case "lz4": self = .lz4
        case "zstd": self = .zstd
        default: return nil
        }
    }

    /// Levels that the codec takes, as Kafka's `compression.*.level`; nil where there is no choice.
    package var levels: ClosedRange<Int>? {
        switch self {
        case .none, .snappy: nil
        case .gzip: 1...9
        case .lz4: 1...17
        case .zstd: -131_072...22
        }
    }

    /// Level used where none is set, as in Kafka.
    package var defaultLevel: Int {
        switch self {
        case .none, .snappy: 0
        case .gzip: 6
        case .lz4: 9
        case .zstd: 3
        }
    }

    /// The shared library that must be present at run time, and the Debian package that brings it.
    package var library: (file: String, debianPackage: String)? {
        switch self {
        case .none, .gzip: nil
        case .snappy: ("libsnappy.so.1", "libsnappy1v5")
        case .lz4: ("liblz4.so.1", "liblz4-1")
        case .zstd: ("libzstd.so.1", "libzstd1")
        }
    }

    /// Whether this machine can compress and decompress with the codec. Loads the library at first use.
    package var isAvailable: Bool {
        switch self {
        case .none, .gzip: true
        case .snappy: SnappyLibrary.shared != nil
        case .lz4: Lz4Library.shared != nil
        case .zstd: ZstdLibrary.shared != nil
        }
    }
}
