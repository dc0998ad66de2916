import Logging
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import MartletBroker
@testable import MartletReplication

/// Proposals, what they became, and a controller that answers when the test says so.
private final class Controller: Sendable {
    private struct State {
        var requests: [AlterPartitionRequest] = []
        var answers: [EventLoopPromise<AlterPartitionResponse>] = []
        var outcomes: [String] = []
        var brokerEpoch: Int64 = 50
    }

    let loop = MultiThreadedEventLoopGroup.singleton.next()
    private let elsewhere = MultiThreadedEventLoopGroup.singleton.next()
    private let state = Mutex(State())

    func proposals() -> InSyncProposals {
        InSyncProposals(
            eventLoop: loop, nodeID: BrokerID(1), brokerEpoch: { self.state.withLock { $0.brokerEpoch } },
            logger: Logger(label: "test")
        ) { request in
            let promise = self.elsewhere.makePromise(of: AlterPartitionResponse.self)
            self.state.withLock { state in
                state.requests.append(request)
                state.answers.append(promise)
            }
            return promise.futureResult
        }
    }

    var requests: [AlterPartitionRequest] { state.withLock { $0.requests } }
    var outcomes: [String] { state.withLock { $0.outcomes } }
    func register(as epoch: Int64) { state.withLock { $0.brokerEpoch = epoch } }

    /// Everything that the loop was told to do is done, and what follows from it at once.
    func settle() async throws {
        for _ in 0..<4 { try await loop.submit {}.get() }
    }

    func answer(_ index: Int, _ result: Result<AlterPartitionResponse, any Error>) async throws {
        let promise = state.withLock { $0.answers[index] }
        promise.completeWith(result)
        _ = try await promise.futureResult.map { _ in true }.recover { _ in false }.get()
        try await settle()
    }

    func propose(
        _ proposals: InSyncProposals, _ key: PartitionKey, _ number: UInt64, _ members: [(Int32, Int64?)] = [(1, nil)]
    ) {
        let proposal = InSyncProposal(
            number: number, leaderEpoch: LeaderEpoch(3), partitionEpoch: PartitionEpoch(8),
            members: members.map { broker, epoch in
                InSyncProposal.Member(broker: BrokerID(broker), brokerEpoch: epoch.map { BrokerEpoch($0) })
            })
        proposals.propose(proposal, of: key) { outcome in
            self.loop.preconditionInEventLoop()
            self.state.withLock { $0.outcomes.append("\(key.topicID.low)-\(key.partition) #\(number) \(outcome.text)") }
        }
    }
}

extension InSyncProposalOutcome {
    fileprivate var text: String {
        switch self {
        case .accepted(let leaderEpoch, let partitionEpoch, let replicas):
            "accepted \(leaderEpoch) \(partitionEpoch) \(replicas.map(\.rawValue))"
        case .refused(let code): "refused \(code.rawValue)"
        case .lost: "lost"
        }
    }
}

extension AlterPartitionRequest {
    fileprivate var named: [String] {
        topics.flatMap { topic in topic.partitions.map { "\(topic.topicID.low)-\($0.partitionIndex)" } }
    }
}

private func answer(
    _ parts: (key: PartitionKey, error: ErrorCode, partitionEpoch: Int32, isr: [Int32])..., error: ErrorCode = .none
) -> Result<AlterPartitionResponse, any Error> {
    var response = AlterPartitionResponse()
    response.errorCode = error.rawValue
    for part in parts {
        var topic = AlterPartitionResponse.TopicData()
        topic.topicID = part.key.topicID
        var data = AlterPartitionResponse.PartitionData()
        data.partitionIndex = part.key.partition.rawValue
        data.errorCode = part.error.rawValue
        data.leaderEpoch = 3
        data.partitionEpoch = part.partitionEpoch
        data.isr = part.isr
        topic.partitions = [data]
        response.topics.append(topic)
    }
    return .success(response)
}

@Suite(.timeLimit(.minutes(1))) struct `Proposals of in-sync sets` {
    private let first = followedKey(1, 0)
    private let second = followedKey(1, 1)
    private let third = followedKey(2, 0)

    @Test func `what is proposed within a turn goes in one request`() async throws {
        let controller = Controller()
        let proposals = controller.proposals()
        try await controller.loop.submit {
            controller.propose(proposals, third, 1)
            controller.propose(proposals, first, 2, [(1, nil), (2, 44), (3, nil)])
            controller.propose(proposals, second, 3)
        }.get()
        try await controller.settle()
        #expect(controller.requests.count == 1)
        let request = controller.requests[0]
        #expect((request.brokerID, request.brokerEpoch) == (1, 50))
        #expect(request.named == ["1-0", "1-1", "2-0"])
        #expect(request.topics.count == 2)
        let data = request.topics[0].partitions[0]
        #expect((data.leaderEpoch, data.partitionEpoch, data.leaderRecoveryState) == (3, 8, 0))
        #expect(data.newIsr == [])
        // Our own epoch for ourselves, what its fetch said for a follower, nothing for one that did not say.
        #expect(data.newIsrWithEpochs.map(\.brokerID) == [1, 2, 3])
        #expect(data.newIsrWithEpochs.map(\.brokerEpoch) == [50, 44, -1])
        _ = try request.frame(version: 3, correlationID: 1, clientID: nil)

        try await controller.answer(
            0, answer((second, .none, 9, [1, 2]), (first, .invalidUpdateVersion, 0, [])))
        #expect(
            controller.outcomes.sorted() == ["1-0 #2 refused 95", "1-1 #3 accepted 3 9 [1, 2]", "2-0 #1 lost"])
    }

    @Test func `one request at a time, and the last word of each partition in the next`() async throws {
        let controller = Controller()
        let proposals = controller.proposals()
        controller.propose(proposals, first, 1)
        try await controller.settle()
        controller.propose(proposals, first, 2)
        controller.propose(proposals, second, 1)
        controller.propose(proposals, first, 3, [(1, nil), (2, 7)])
        try await controller.settle()
        #expect(controller.requests.map(\.named) == [["1-0"]])
        #expect(controller.outcomes == ["1-0 #2 lost"])
        try await controller.answer(0, answer((first, .none, 9, [1])))
        #expect(controller.requests.map(\.named) == [["1-0"], ["1-0", "1-1"]])
        #expect(controller.requests[1].topics[0].partitions[0].newIsrWithEpochs.count == 2)
        #expect(controller.outcomes == ["1-0 #2 lost", "1-0 #1 accepted 3 9 [1]"])
        try await controller.answer(1, answer((first, .none, 10, [1, 2]), (second, .none, 9, [1])))
        #expect(controller.outcomes.count == 4)
        #expect(controller.requests.count == 2)
    }

    @Test func `an error for all loses each, and the next ones go out`() async throws {
        let controller = Controller()
        let proposals = controller.proposals()
        try await controller.loop.submit {
            controller.propose(proposals, first, 1)
            controller.propose(proposals, second, 1)
        }.get()
        try await controller.settle()
        controller.propose(proposals, third, 1)
        try await controller.settle()
        let parts = answer((first, .none, 9, [1]), (second, .none, 9, [1]), error: .staleBrokerEpoch)
        try await controller.answer(0, parts)
        #expect(controller.outcomes.sorted() == ["1-0 #1 lost", "1-1 #1 lost"])
        #expect(controller.requests.map(\.named).last == ["2-0"])
        try await controller.answer(1, .failure(ChannelError.ioOnClosedChannel))
        #expect(controller.outcomes.last == "2-0 #1 lost")
        // Nothing is repeated.
        #expect(controller.requests.count == 2)
    }

    @Test func `nothing leaves before this broker is registered`() async throws {
        let controller = Controller()
        controller.register(as: -1)
        let proposals = controller.proposals()
        controller.propose(proposals, first, 1)
        try await controller.settle()
        #expect((controller.requests.count, controller.outcomes) == (0, ["1-0 #1 lost"]))
        controller.register(as: 51)
        controller.propose(proposals, first, 2)
        try await controller.settle()
        #expect(controller.requests.map(\.brokerEpoch) == [51])
    }

    @Test func `the close loses what waits and settles what is on its way`() async throws {
        let controller = Controller()
        let proposals = controller.proposals()
        controller.propose(proposals, first, 1)
        try await controller.settle()
        controller.propose(proposals, second, 1)
        proposals.close()
        controller.propose(proposals, third, 1)
        try await controller.settle()
        #expect(controller.outcomes == ["1-1 #1 lost", "2-0 #1 lost"])
        try await controller.answer(0, answer((first, .none, 9, [1])))
        #expect(controller.outcomes.last == "1-0 #1 accepted 3 9 [1]")
        #expect(controller.requests.count == 1)
    }
}
