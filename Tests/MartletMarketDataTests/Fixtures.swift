import NIOCore
import Testing

@testable import MartletMarketData

#if canImport(Glibc)
    import Glibc
#endif

/// Folder of shared real data beside the package, if this machine has it.
enum SharedData {
    static let root: String? = {
        let package = String(#filePath).split(separator: "/").dropLast(3).joined(separator: "/")
        let path = "/\(package)/../shared/data"
        return access(path, R_OK) == 0 ? path : nil
    }()

    static var itch: String? { root.map { $0 + "/itch50-aapl-20200130/aapl_20200130_first10k.itch.gz" } }
    static var lobster: String? {
        root.map { $0 + "/lobster-amzn-20120621-l5/AMZN_2012-06-21_34200000_57600000_message_5.csv.gz" }
    }
    static let absent: Comment = "no ../shared/data beside the package: the proof on real data is skipped"
}

/// A fresh folder that goes away with the test.
func withTemporaryFolder<R>(_ body: (String) throws -> R) throws -> R {
    var template = Array("/tmp/martlet-market-XXXXXX".utf8CString)
    let path = try #require(mkdtemp(&template).map { String(cString: $0) })
    defer { remove(path) }
    return try body(path)
}

private func remove(_ path: String) {
    guard let folder = opendir(path) else { return }
    while let entry = readdir(folder) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { unlink(path + "/" + name) }
    }
    closedir(folder)
    rmdir(path)
}

func write(_ bytes: [UInt8], to path: String, compressed: Bool = false) throws {
    let output = try MarketFileOutput(path: path, compressed: compressed)
    try output.write(ByteBuffer(bytes: bytes))
    try output.finish()
}

/// The whole file, unpacked.
func contents(_ path: String) throws -> [UInt8] {
    let input = try MarketFileInput(path: path)
    var result: [UInt8] = []
    while try input.require(1) > 0 { result += Array(input.take(input.available).readableBytesView) }
    return result
}

/// The file's bytes as they are on disk.
func rawContents(_ path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "rb"))
    defer { fclose(file) }
    var result: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&chunk, 1, chunk.count, file)
        if count == 0 { return result }
        result += chunk[..<count]
    }
}

/// Generated session as the bytes of an ITCH file.
func sessionBytes(_ plan: ITCHSessionPlan) throws -> [UInt8] {
    var bytes: [UInt8] = []
    for message in try ITCHSessionGenerator(plan) {
        let count = message.bytes.readableBytes
        bytes += [UInt8(count >> 8), UInt8(count & 0xff)] + Array(message.bytes.readableBytesView)
    }
    return bytes
}

func readAllITCH(_ path: String) throws -> [ITCHMessage] {
    let reader = try ITCHFileReader(path: path)
    var messages: [ITCHMessage] = []
    while let message = try reader.next() { messages.append(message) }
    return messages
}
