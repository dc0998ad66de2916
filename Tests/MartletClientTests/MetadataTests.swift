import MartletKafkaProtocol
import MartletLogModel
import Testing

@testable import MartletClient

@Suite struct MetadataTests {
    private func response(
        topic: String = "t", id: UniversalID = UniversalID(high: 1, low: 1), leader: Int32, epoch: Int32
    ) -> MetadataResponse {
        var response = MetadataResponse()
        response.brokers = (1...2).map { id in
            var broker = MetadataResponse.MetadataResponseBroker()
            (broker.nodeID, broker.host, broker.port) = (Int32(id), "host\(id)", 9092)
            return broker
        }
        var entry = MetadataResponse.MetadataResponseTopic()
        entry.name = topic
        entry.topicID = id
        var partition = MetadataResponse.MetadataResponsePartition()
        partition.leaderID = leader
        partition.leaderEpoch = epoch
        entry.partitions = [partition]
        response.topics = [entry]
        return response
    }

    private let partition = TopicPartition("t", 0)

    @Test func `an older leader epoch does not take the metadata back`() {
        var metadata = ClusterMetadata()
        _ = metadata.update(response(leader: 1, epoch: 5))
        _ = metadata.update(response(leader: 2, epoch: 4))
        #expect(metadata.partition(partition)?.leader == BrokerID(1))
        _ = metadata.update(response(leader: 2, epoch: 6))
        #expect(metadata.partition(partition)?.leader == BrokerID(2))
    }

    @Test func `a topic made anew begins with its own epochs`() {
        var metadata = ClusterMetadata()
        _ = metadata.update(response(leader: 1, epoch: 5))
        _ = metadata.update(response(id: UniversalID(high: 2, low: 2), leader: 2, epoch: 0))
        #expect(metadata.partition(partition)?.leader == BrokerID(2))
        #expect(metadata.names[UniversalID(high: 1, low: 1)] == nil)
        #expect(metadata.names[UniversalID(high: 2, low: 2)] == "t")
    }

    @Test func `a leader hint counts only with a known broker and a newer epoch`() {
        var metadata = ClusterMetadata()
        _ = metadata.update(response(leader: 1, epoch: 5))
        for (leader, epoch) in [(2, 5), (9, 6), (-1, -1)] as [(Int32, Int32)] {
            let isNews = metadata.hint(leader: leader, epoch: epoch, of: partition)
            #expect(!isNews)
        }
        let isNews = metadata.hint(leader: 2, epoch: 6, of: partition)
        #expect(isNews)
        #expect(metadata.partition(partition)?.leader == BrokerID(2))
    }

    @Test func `an unknown topic is forgotten and reported`() {
        var metadata = ClusterMetadata()
        _ = metadata.update(response(leader: 1, epoch: 5))
        var gone = MetadataResponse()
        var entry = MetadataResponse.MetadataResponseTopic()
        entry.name = "t"
        entry.errorCode = 3
        gone.topics = [entry]
        let errors = metadata.update(gone)
        #expect(errors == ["t": .unknownTopicOrPartition])
        #expect(metadata.topics["t"] == nil)
        #expect(metadata.brokers.count == 2)
    }

    @Test func `impossible partition indexes and ports are ignored`() {
        var metadata = ClusterMetadata()
        var answer = response(leader: 1, epoch: 0)
        answer.topics[0].partitions[0].partitionIndex = .max
        answer.brokers[0].port = 70_000
        _ = metadata.update(answer)
        #expect(metadata.topics["t"] == nil)
        #expect(metadata.brokers.count == 1)
    }
}
