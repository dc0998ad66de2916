import MartletLogModel
import MartletMetadataQuorum
import NIOCore
import Testing

@Suite struct QuorumStateFileTests {
    private let directory = UniversalID(high: 0x0123_4567_89ab_cdef, low: 0x0fed_cba9_8765_4321)

    @Test func `what is written is read`() {
        let files = [
            QuorumStateFile(epoch: .zero),
            QuorumStateFile(epoch: LeaderEpoch(7), vote: ReplicaKey(BrokerID(2), directory), leaderID: BrokerID(3)),
            QuorumStateFile(epoch: LeaderEpoch(.max), vote: ReplicaKey(BrokerID(.max), nil)),
        ]
        for file in files { #expect(QuorumStateFile(decoding: file.encode()) == file) }
        #expect(
            String(buffer: files[1].encode())
                == "{\"leaderId\":3,\"leaderEpoch\":7,\"votedId\":2,\"votedDirectoryId\":\"\(directory)\",\"data_version\":1}")
    }

    @Test func `files of Kafka are read, those of before KIP-853 as well`() {
        let old = """
            {"clusterId":"","leaderId":1,"leaderEpoch":5,"votedId":-1,"appliedOffset":0,\
            "currentVoters":[{"voterId":1}],"data_version":0}
            """
        #expect(
            QuorumStateFile(decoding: ByteBuffer(string: old))
                == QuorumStateFile(epoch: LeaderEpoch(5), leaderID: BrokerID(1)))
        let spaced = """
            { "leaderId" : -1 , "leaderEpoch" : 4,
              "votedId" : 9, "votedDirectoryId": "\(directory)", "data_version" : 1 }
            """
        #expect(
            QuorumStateFile(decoding: ByteBuffer(string: spaced))
                == QuorumStateFile(epoch: LeaderEpoch(4), vote: ReplicaKey(BrokerID(9), directory)))
    }

    @Test func `nothing else is taken for one`() {
        let whole = QuorumStateFile(epoch: LeaderEpoch(7), vote: ReplicaKey(BrokerID(2), directory)).encode()
        for length in 0..<whole.readableBytes {
            let part = whole.getSlice(at: whole.readerIndex, length: length)
            #expect(part.flatMap { QuorumStateFile(decoding: $0) } == nil, "\(length) bytes")
        }
        let text = String(buffer: whole)
        for (old, new) in [
            ("\"leaderEpoch\":7", "\"leaderEpoch\":-7"), ("\"leaderEpoch\":7", "\"leaderEpoch\":\"seven\""),
            ("\"leaderEpoch\":7", "\"leaderEpoch\":99999999999"), ("\"data_version\":1", "\"data_version\":2"),
            ("}", "}}"), ("\"votedId\":2,", ""), ("\(directory)", "?"), ("{", "["),
        ] {
            let wrong = text.split(separator: old, maxSplits: 1, omittingEmptySubsequences: false).joined(separator: new)
            #expect(wrong != text)
            #expect(QuorumStateFile(decoding: ByteBuffer(string: wrong)) == nil, "\(wrong)")
        }
    }
}
