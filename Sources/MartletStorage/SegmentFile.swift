/// A counted reference to an open file: it stays readable, even after the file's deletion, until the
/// last region or work item that holds it is gone; then the descriptor is closed.
package final class SegmentFile<D: Disk>: Sendable {
    package let file: D.File
    package let path: String

    package init(_ file: D.File, path: String) {
        self.file = file
        self.path = path
    }

    deinit { file.close() }

    /// For sendfile; `nil` on the simulated disk. Valid as long as this object lives.
    package var descriptor: CInt? { file.descriptor }
}

/// File names in a partition's folder, as Kafka writes them.
package enum LogFileName {
    package static let log = "log"
    package static let offsetIndex = "index"
    package static let timeIndex = "timeindex"
    package static let transactionIndex = "txnindex"
    package static let producerSnapshot = "snapshot"
    package static let deletedSuffix = ".deleted"
    package static let cleanedSuffix = ".cleaned"
    package static let temporarySuffix = ".tmp"
    package static let leaderEpochCheckpoint = "leader-epoch-checkpoint"
    package static let partitionMetadata = "partition.metadata"

    /// Twenty digits and the extension: `00000000000000000042.log`.
    package static func make(_ offset: Int64, _ kind: String) -> String {
        let digits = String(offset)
        return String(repeating: "0", count: max(0, 20 - digits.utf8.count)) + digits + "." + kind
    }

    /// The inverse of ``make(_:_:)``; `nil` for any other name.
    package static func parse(_ name: String) -> (offset: Int64, kind: String)? {
        let bytes = name.utf8
        guard bytes.count > 21 else { return nil }
        var offset: Int64 = 0
        var index = bytes.startIndex
        for _ in 0..<20 {
            let digit = bytes[index]
            guard digit >= UInt8(ascii: "0"), digit <= UInt8(ascii: "9") else { return nil }
            let (product, overflow) = offset.multipliedReportingOverflow(by: 10)
            let (sum, overflow2) = product.addingReportingOverflow(Int64(digit - UInt8(ascii: "0")))
            if overflow || overflow2 { return nil }
            offset = sum
            index = bytes.index(after: index)
        }
        guard bytes[index] == UInt8(ascii: ".") else { return nil }
        return (offset, String(name[name.utf8.index(after: index)...]))
    }
}
