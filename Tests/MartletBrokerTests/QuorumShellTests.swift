import MartletBroker
import MartletKafkaProtocol
import MartletLogModel
import MartletMetadataQuorum
import MartletSimulatorKit
import MartletStorage
import NIOCore
import Testing

/// A quorum of one under the broker that it serves.
@Suite struct QuorumShellTests {
    private static let statePath = "/data/__cluster_metadata-0/\(QuorumStateFile.name)"

    private func state(_ disk: SimulatedDisk) -> QuorumStateFile? {
        disk.content(Self.statePath).flatMap { QuorumStateFile(decoding: ByteBuffer(bytes: $0)) }
    }

    private func createTopic(_ name: String, on broker: SteppedBroker) throws -> Int16? {
        var topic = CreateTopicsRequest.CreatableTopic()
        topic.name = name
        topic.numPartitions = 1
        topic.replicationFactor = 1
        var request = CreateTopicsRequest()
        request.topics = [topic]
        return try broker.call(request).topics.first?.errorCode
    }

    private func topics(_ broker: SteppedBroker) throws -> [String] {
        try broker.call(MetadataRequest(topics: nil), version: 12).topics.compactMap(\.name).sorted()
    }

    @Test func `each start leads in an epoch of its own`() throws {
        let disk = SimulatedDisk()
        for epoch in Int32(1)...3 {
            let broker = try SteppedBroker(folder: "/data", disk: disk)
            #expect(try createTopic("t\(epoch)", on: broker) == 0)
            #expect(try topics(broker) == (1...epoch).map { "t\($0)" })
            #expect(state(disk)?.epoch == LeaderEpoch(epoch))
            #expect(state(disk)?.vote?.id == BrokerID(0))
            try broker.stop()
        }
    }

    @Test func `a directory that is not the voter of its log is refused with its remedy`() throws {
        let disk = SimulatedDisk()
        try SteppedBroker(folder: "/data", disk: disk).stop()
        let path = "/data/" + MetaProperties.fileName
        let text = String(decoding: try #require(disk.content(path)), as: UTF8.self)
        let changed = text.split(separator: "\n").map {
            $0.hasPrefix("directory.id=") ? "directory.id=\(UniversalID(high: 7, low: 7))" : String($0)
        }
        disk.setContent(path, Array((changed.joined(separator: "\n") + "\n").utf8))
        let error = #expect(throws: MetadataLogError.self) { try SteppedBroker(folder: "/data", disk: disk) }
        #expect(error?.description.contains("directory.id in meta.properties") == true)
        disk.setContent(path, Array(text.utf8))
        try SteppedBroker(folder: "/data", disk: disk).stop()
    }

    @Test func `a start goes on with the reserve when the disk is full`() throws {
        let disk = SimulatedDisk()
        let reserveBytes = 1 << 20
        try SteppedBroker(folder: "/data", disk: disk, reserveBytes: reserveBytes).stop()
        // How many files a start makes before this one.
        let copy = disk.crashed(seed: 1)
        let earlier = copy.trace.count
        try SteppedBroker(folder: "/data", disk: copy, reserveBytes: reserveBytes).stop()
        let created = copy.trace.dropFirst(earlier).filter { $0.contains(" create ") }
        let index = try #require(created.firstIndex { $0.contains(QuorumStateFile.name) })
        disk.fail(.create, .noSpace, skipping: index - created.startIndex)
        try SteppedBroker(folder: "/data", disk: disk, reserveBytes: reserveBytes).stop()
        #expect(state(disk)?.epoch == LeaderEpoch(2))
    }

    @Test func `a damaged state file is refused with its remedy`() throws {
        let disk = SimulatedDisk()
        try SteppedBroker(folder: "/data", disk: disk).stop()
        disk.setContent(Self.statePath, Array("{}".utf8))
        let error = #expect(throws: MetadataLogError.self) { try SteppedBroker(folder: "/data", disk: disk) }
        #expect(error?.description.contains(Self.statePath) == true)
        #expect(error?.description.contains("remove it if this broker runs alone") == true)
        // The log knows the epoch too.
        try disk.remove(Self.statePath)
        try SteppedBroker(folder: "/data", disk: disk).stop()
        #expect(state(disk)?.epoch == LeaderEpoch(2))
    }

    @Test func `a power cut at any point of a start leaves a directory that starts, with every topic that was answered`()
        throws
    {
        let first = SimulatedDisk()
        let before = try SteppedBroker(folder: "/data", disk: first)
        #expect(try createTopic("before", on: before) == 0)
        try before.stop()
        for fresh in [true, false] {
            var isDone = false
            for stop in stride(from: 1, to: 600, by: 3) where !isDone {
                let disk = fresh ? SimulatedDisk() : first.crashed(seed: 1)
                disk.stop(afterOperations: disk.operationCount + stop)
                var expected = fresh ? [] : ["before"]
                if let broker = try? SteppedBroker(folder: "/data", disk: disk) {
                    if (try? createTopic("new", on: broker)) == 0 { expected.append("new") }
                    isDone = !disk.hasStopped
                }
                for seed in 0..<3 as Range<UInt64> {
                    let image = disk.crashed(seed: seed)
                    let place = "fresh \(fresh) stop \(stop) image \(seed)"
                    let broker: SteppedBroker
                    do {
                        broker = try SteppedBroker(folder: "/data", disk: image)
                    } catch {
                        Issue.record("\(place): \(error)")
                        continue
                    }
                    let found = try topics(broker)
                    #expect(Set(found).isSuperset(of: expected), "\(place): \(found)")
                    try broker.stop()
                }
            }
            #expect(isDone, "the start never came to its end")
        }
    }
}
