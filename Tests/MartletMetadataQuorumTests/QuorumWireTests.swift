import MartletKafkaProtocol
import MartletLogModel
import MartletMetadataQuorum
import NIOCore
import Testing

/// What one node writes, the other reads: through the bytes of the newest version.
@Suite struct QuorumWireTests {
    private let cluster = "cluster"
    private let first = ReplicaKey(BrokerID(1), UniversalID(high: 1, low: 2))
    private let second = ReplicaKey(BrokerID(2), UniversalID(high: 3, low: 4))
    private let endpoints = [Endpoint(name: QuorumWire.listenerName, host: "n1", port: 9_093)]

    private func overWire<Message: KafkaMessage>(_ message: Message) throws -> Message {
        var writer = ProtocolWriter()
        try message.encode(into: &writer, version: Message.versions.upperBound)
        var reader = ProtocolReader(writer.buffer)
        let read = try Message(reading: &reader, version: Message.versions.upperBound)
        try reader.requireEnd()
        return read
    }

    private func header(_ error: ErrorCode, leader: Bool = true, hasEndpoints: Bool = true) -> AnswerHeader {
        AnswerHeader(
            error: error, epoch: LeaderEpoch(5),
            leader: leader ? LeaderAddress(id: BrokerID(1), endpoints: hasEndpoints ? endpoints : []) : nil)
    }

    @Test func `requests arrive as they were sent`() throws {
        let position = LogPosition(offset: Offset(70), epoch: LeaderEpoch(4))
        for isPreVote in [false, true] {
            let vote = VoteCall(
                voter: second, candidate: first, epoch: LeaderEpoch(5), lastPosition: position,
                isPreVote: isPreVote)
            #expect(
                try QuorumWire.read(overWire(QuorumWire.write(vote, clusterID: cluster)), clusterID: cluster)
                    == .vote(vote))
        }
        let begin = EpochBegin(
            voter: second, leader: LeaderAddress(id: BrokerID(1), endpoints: endpoints), epoch: LeaderEpoch(5)
        )
        #expect(
            try QuorumWire.read(overWire(QuorumWire.write(begin, clusterID: cluster)), clusterID: cluster)
                == .beginEpoch(begin))
        for highWatermark in [nil, Offset(60)] {
            let fetch = LogFetch(
                replica: second, epoch: LeaderEpoch(5), offset: Offset(70), lastEpoch: LeaderEpoch(4),
                highWatermark: highWatermark, maxWaitMilliseconds: 500, maxBytes: 1_000)
            let request = try overWire(QuorumWire.write(fetch, clusterID: cluster))
            #expect(QuorumWire.isMetadataFetch(request))
            #expect(try QuorumWire.read(request, clusterID: cluster) == .fetch(fetch))
        }
        let part = SnapshotFetch(
            replica: second, epoch: LeaderEpoch(5), id: position, position: 12, maxBytes: 99)
        #expect(
            try QuorumWire.read(overWire(QuorumWire.write(part, clusterID: cluster)), clusterID: cluster)
                == .fetchSnapshot(part))
        let update = VoterUpdate(voter: Voter(key: second, endpoints: endpoints), epoch: LeaderEpoch(5))
        #expect(
            try QuorumWire.read(overWire(QuorumWire.write(update, clusterID: cluster)), clusterID: cluster)
                == .updateVoter(update))
    }

    @Test func `the end of an epoch names its candidates in either version`() throws {
        let end = EpochEnd(
            leaderID: BrokerID(1), epoch: LeaderEpoch(5), preferredCandidates: [second, first])
        #expect(
            try QuorumWire.read(overWire(QuorumWire.write(end, clusterID: cluster)), clusterID: cluster)
                == .endEpoch(end))
        var writer = ProtocolWriter()
        try QuorumWire.write(end, clusterID: cluster).encode(into: &writer, version: 0)
        var reader = ProtocolReader(writer.buffer)
        let old = try QuorumWire.read(EndQuorumEpochRequest(reading: &reader, version: 0), clusterID: cluster)
        #expect(
            old
                == .endEpoch(
                    EpochEnd(
                        leaderID: BrokerID(1), epoch: LeaderEpoch(5),
                        preferredCandidates: [ReplicaKey(BrokerID(2), nil), ReplicaKey(BrokerID(1), nil)])))
    }

    @Test func `answers arrive as they were sent`() throws {
        for header in [header(.none), header(.fencedLeaderEpoch), header(.none, leader: false)] {
            for isGranted in [false, true] {
                #expect(
                    try QuorumWire.read(overWire(QuorumWire.write(vote: header, isGranted: isGranted)))
                        == .vote(header, isGranted: isGranted))
            }
            let answer = LogAnswer(
                header: header, highWatermark: Offset(60), logStart: Offset(10),
                diverging: LogPosition(offset: Offset(50), epoch: LeaderEpoch(3)),
                snapshot: LogPosition(offset: Offset(10), epoch: LeaderEpoch(2)))
            #expect(try QuorumWire.read(overWire(QuorumWire.write(answer, records: nil))) == .fetch(answer))
        }
        let bare = header(.none, hasEndpoints: false)
        #expect(try QuorumWire.read(overWire(QuorumWire.write(beginEpoch: bare))) == .beginEpoch(bare))
        #expect(try QuorumWire.read(overWire(QuorumWire.write(endEpoch: bare))) == .endEpoch(bare))
        let part = SnapshotAnswer(
            header: bare, id: LogPosition(offset: Offset(10), epoch: LeaderEpoch(2)), size: 30, position: 20,
            bytes: ByteBuffer(bytes: [1, 2, 3]))
        #expect(try QuorumWire.read(overWire(QuorumWire.write(part))) == .fetchSnapshot(part))
    }

    @Test func `records arrive as batches`() throws {
        let records: [ControlRecord] = [
            .version(1), .voters(VoterSet([Voter(key: first, endpoints: endpoints)])),
        ]
        let bytes = try ControlBatch.encode(
            records, at: Offset(7), epoch: LeaderEpoch(5), timestamp: Timestamp(milliseconds: 1))
        let answer = LogAnswer(header: header(.none), highWatermark: Offset(7), logStart: .zero)
        guard case .fetch(let read) = try QuorumWire.read(overWire(QuorumWire.write(answer, records: bytes)))
        else {
            Issue.record("no answer to a fetch")
            return
        }
        #expect(read.batches.map(\.controlRecords) == [records])
        #expect(read.batches.first?.endOffset == Offset(9))
    }

    @Test func `other clusters and other topics are refused`() throws {
        let vote = VoteCall(
            voter: nil, candidate: first, epoch: LeaderEpoch(5),
            lastPosition: LogPosition(offset: .zero, epoch: .zero), isPreVote: true)
        let foreign = QuorumWire.write(vote, clusterID: "another")
        #expect(throws: QuorumWire.Refusal(error: .inconsistentClusterID)) {
            try QuorumWire.read(foreign, clusterID: cluster)
        }
        var elsewhere = QuorumWire.write(vote, clusterID: cluster)
        elsewhere.topics[0].topicName = "orders"
        var nowhere = elsewhere
        nowhere.topics = []
        for request in [elsewhere, nowhere] {
            #expect(throws: QuorumWire.Refusal(error: .invalidRequest)) {
                try QuorumWire.read(request, clusterID: cluster)
            }
        }
        let add = {
            var add = AddRaftVoterRequest()
            add.clusterID = "another"
            return add
        }()
        #expect(throws: QuorumWire.Refusal(error: .inconsistentClusterID)) {
            try QuorumWire.read(add, clusterID: cluster)
        }
    }

    @Test func `refusals of voter changes say why`() {
        for error in [
            ErrorCode.notLeaderOrFollower, .requestTimedOut, .duplicateVoter, .unsupportedVersion,
            .invalidRequest,
        ] {
            let response = QuorumWire.write(addVoter: header(error))
            #expect(response.errorCode == error.rawValue && !(response.errorMessage ?? "").isEmpty)
        }
        #expect(QuorumWire.write(removeVoter: header(.voterNotFound)).errorMessage?.isEmpty == false)
        #expect(QuorumWire.write(addVoter: header(.none)).errorMessage == nil)
    }
}
