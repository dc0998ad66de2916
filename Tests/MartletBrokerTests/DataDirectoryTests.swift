import Glibc
import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import MartletTestSupport
import NIOCore
import Testing

/// Data directories written by earlier releases open unchanged.
@Suite(.timeLimit(.minutes(2))) struct DataDirectoryTests {
    @Test func `the data directory of the first release opens with its topics, records, offsets and producers`() async throws {
        let folder = TemporaryFolder()
        defer { folder.remove() }
        try copyTree(
            BuildProducts.source("Tests/MartletBrokerTests/Fixtures/data-directory-1"), to: folder.file("data"))
        try await withBroker(folder: folder.file("data")) { broker in
            #expect(broker.clusterID == "HSL_J7DqQMOMUvjTvYt3Fg")
            let client = try WireClient(port: broker.address.port)
            let metadata = try client.call(MetadataRequest(topics: nil), version: 12)
            #expect(metadata.topics.map(\.name) == ["__consumer_offsets", "trades"])
            let trades = try #require(metadata.topics.last)
            #expect(trades.topicID == UniversalID("RCIWdQdOSoyrenFi0uHi0g"))
            #expect(trades.partitions.count == 2)

            #expect(try values(client, partition: 0) == ["AAPL=100@320.14", "AAPL=200@320.15"])
            #expect(try values(client, partition: 1) == ["MSFT=50@181.02"])

            var fetch = OffsetFetchRequest()
            fetch.groupID = "settlement"
            fetch.topics = nil
            let offsets = try client.call(fetch, version: 7)
            let committed = Dictionary(
                uniqueKeysWithValues: (offsets.topics.first?.partitions ?? []).map { ($0.partitionIndex, $0.committedOffset) })
            #expect(committed == [0: 2, 1: 1])
        }
    }

    private func values(_ client: WireClient, partition: Int32) throws -> [String] {
        let response = try client.call(client.fetchRequest("trades", from: 0, partition: partition), version: 12)
        guard var rest = response.responses.first?.partitions.first?.records else { return [] }
        var values: [String] = []
        while rest.readableBytes > 0 {
            let header = try RecordBatchHeader(reading: rest, at: rest.readerIndex)
            #expect(header.hasProducerID)
            guard let batch = rest.readSlice(length: header.totalByteCount) else { break }
            var iterator = try RecordIterator(batch)
            while let record = try iterator.next() {
                values.append(String(buffer: record.key ?? ByteBuffer()) + "=" + String(buffer: record.value ?? ByteBuffer()))
            }
        }
        return values
    }

    /// Copies a folder of small files.
    private func copyTree(_ source: String, to target: String) throws {
        mkdir(target, 0o755)
        let directory = try #require(opendir(source))
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            // SAFETY: `d_name` is a null-terminated text within the entry that readdir returned.
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard name != ".", name != ".." else { continue }
            if entry.pointee.d_type == UInt8(DT_DIR) {
                try copyTree(source + "/" + name, to: target + "/" + name)
            } else {
                let file = try #require(fopen(source + "/" + name, "r"))
                defer { fclose(file) }
                var bytes = [UInt8](repeating: 0, count: 1 << 16)
                let count = fread(&bytes, 1, bytes.count, file)
                let copy = try #require(fopen(target + "/" + name, "w"))
                defer { fclose(copy) }
                #expect(fwrite(bytes, 1, count, copy) == count)
            }
        }
    }
}
