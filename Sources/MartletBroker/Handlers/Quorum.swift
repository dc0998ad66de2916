internal import Logging
package import MartletController
package import MartletKafkaProtocol
package import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletTransport
package import NIOCore

/// Requests to this node's part in the metadata quorum (KIP-595, KIP-630, KIP-853): of other nodes, and of clients that
/// look at the voters or change them, which go to the leader.
package enum QuorumHandlers {
    package static func vote(_ request: VoteRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = VoteResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> VoteResponse in
                guard case .answer(.vote(let header, let isGranted)) = reply else { return reply.mismatch() }
                return QuorumWire.write(vote: header, isGranted: isGranted)
            })
    }

    package static func beginEpoch(_ request: BeginQuorumEpochRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = BeginQuorumEpochResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> BeginQuorumEpochResponse in
                guard case .answer(.beginEpoch(let header)) = reply else { return reply.mismatch() }
                return QuorumWire.write(beginEpoch: header)
            })
    }

    package static func endEpoch(_ request: EndQuorumEpochRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = EndQuorumEpochResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> EndQuorumEpochResponse in
                guard case .answer(.endEpoch(let header)) = reply else { return reply.mismatch() }
                return QuorumWire.write(endEpoch: header)
            })
    }

    /// Whether a fetch is a node's that follows the metadata log; others are a consumer's.
    static func isMetadataFetch(_ request: FetchRequest) -> Bool { QuorumWire.isMetadataFetch(request) }

    static func fetch(_ request: FetchRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = FetchResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> FetchResponse in
                switch reply {
                case .answer(.fetch(let answer)): return QuorumWire.write(answer, records: nil)
                case .records(let answer, let bytes): return QuorumWire.write(answer, records: bytes)
                case .answer: return reply.mismatch()
                }
            })
    }

    package static func fetchSnapshot(_ request: FetchSnapshotRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = FetchSnapshotResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> FetchSnapshotResponse in
                guard case .answer(.fetchSnapshot(let answer)) = reply else { return reply.mismatch() }
                return QuorumWire.write(answer)
            })
    }

    package static func updateVoter(_ request: UpdateRaftVoterRequest, _ context: RequestContext) {
        context.ask(
            read: { clusterID throws(QuorumWire.Refusal) in try QuorumWire.read(request, clusterID: clusterID) },
            refusal: { code in
                var response = UpdateRaftVoterResponse()
                response.errorCode = code.rawValue
                return response
            },
            write: { (reply: QuorumShell.Reply) -> UpdateRaftVoterResponse in
                guard case .answer(.voterChange(let header)) = reply else { return reply.mismatch() }
                return QuorumWire.write(updateVoter: header)
            })
    }

    package static func describe(_ request: DescribeQuorumRequest, _ context: RequestContext) { context.relay(request) }

    package static func addVoter(_ request: AddRaftVoterRequest, _ context: RequestContext) { context.relay(request) }

    package static func removeVoter(_ request: RemoveRaftVoterRequest, _ context: RequestContext) {
        context.relay(request)
    }
}

extension RequestContext {
    /// Hands a node's request to the quorum and answers with what it says. A request for another cluster, or one that
    /// makes no sense, is refused as a whole.
    fileprivate func ask<Response: KafkaResponse>(
        read: (String) throws(QuorumWire.Refusal) -> QuorumRequest, refusal: (ErrorCode) -> Response,
        write: @escaping @Sendable (QuorumShell.Reply) -> Response
    ) {
        let request: QuorumRequest
        do throws(QuorumWire.Refusal) {
            request = try read(services.controller.clusterID.description)
        } catch {
            return respond(refusal(error.error))
        }
        let reply = services.controller.quorum.ask(request)
        reply.hop(to: loop.eventLoop).assumeIsolated().whenComplete { result in
            switch result {
            case .success(let reply): respond(write(reply))
            // The node stops, or had too much to do; whoever asks does so again.
            case .failure: respond(with: .close)
            }
        }
    }
}

extension QuorumShell.Reply {
    func mismatch<Response>() -> Response { preconditionFailure("a quorum request was answered with \(self)") }
}

// MARK: What clients ask of the leader

extension DescribeQuorumRequest: ControllerRequest {
    /// The one partition there is.
    static let ofMetadata: DescribeQuorumRequest = {
        var partition = DescribeQuorumRequest.PartitionData()
        partition.partitionIndex = MetadataLog.partition.partition.rawValue
        var topic = DescribeQuorumRequest.TopicData()
        topic.topicName = MetadataLog.partition.topic
        topic.partitions = [partition]
        var request = DescribeQuorumRequest()
        request.topics = [topic]
        return request
    }()

    package static var changesMetadata: Bool { false }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<DescribeQuorumResponse> {
        controller.eventLoop.submit {
            guard topics.count == 1, topics[0].topicName == MetadataLog.partition.topic, topics[0].partitions.count == 1,
                topics[0].partitions[0].partitionIndex == MetadataLog.partition.partition.rawValue
            else { return partitionErrors(.unknownTopicOrPartition) }
            guard let description = controller.quorum.describe() else { throw ControllerUnavailable.notController }
            let (wall, now) = (controller.quorum.clock.wallTime, controller.quorum.now)
            var response = QuorumWire.write(description) { instant in
                Timestamp(milliseconds: wall.rawValue - (now.nanoseconds - instant.nanoseconds) / 1_000_000)
            }
            response.errorMessage = nil
            for topic in response.topics.indices {
                for index in response.topics[topic].partitions.indices {
                    response.topics[topic].partitions[index].errorMessage = nil
                }
            }
            return response
        }
    }

    private func partitionErrors(_ code: ErrorCode) -> DescribeQuorumResponse {
        var response = DescribeQuorumResponse()
        response.errorMessage = nil
        response.topics = topics.map { topic in
            var answer = DescribeQuorumResponse.TopicData()
            answer.topicName = topic.topicName
            answer.partitions = topic.partitions.map { partition in
                var result = DescribeQuorumResponse.PartitionData()
                result.partitionIndex = partition.partitionIndex
                result.errorCode = code.rawValue
                result.errorMessage = nil
                result.leaderID = -1
                result.leaderEpoch = -1
                return result
            }
            return answer
        }
        return response
    }

    package func refused(_ code: ErrorCode) -> DescribeQuorumResponse {
        partitionErrors(code == .notController ? .notLeaderOrFollower : code)
    }
}

extension AddRaftVoterRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }
    package static var changesMetadata: Bool { false }
    package var timeoutMilliseconds: Int64 { Int64(timeoutMs) }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<AddRaftVoterResponse> {
        controller.changeVoters { clusterID throws(QuorumWire.Refusal) in
            try QuorumWire.read(self, clusterID: clusterID)
        }.map { QuorumWire.write(addVoter: $0) }
    }

    package func refused(_ code: ErrorCode) -> AddRaftVoterResponse {
        QuorumWire.write(addVoter: AnswerHeader(error: code, epoch: .zero, leader: nil))
    }
}

extension RemoveRaftVoterRequest: ControllerRequest {
    package static var isRepeatable: Bool { false }
    package static var changesMetadata: Bool { false }

    package func decided(
        by controller: ControllerShell, origin: RequestOrigin
    ) -> EventLoopFuture<RemoveRaftVoterResponse> {
        controller.changeVoters { clusterID throws(QuorumWire.Refusal) in
            try QuorumWire.read(self, clusterID: clusterID)
        }.map { QuorumWire.write(removeVoter: $0) }
    }

    package func refused(_ code: ErrorCode) -> RemoveRaftVoterResponse {
        QuorumWire.write(removeVoter: AnswerHeader(error: code, epoch: .zero, leader: nil))
    }
}

extension ControllerShell {
    /// Asks the quorum for a change of its voters; fails where this node does not lead it.
    fileprivate func changeVoters(
        _ read: (String) throws(QuorumWire.Refusal) -> QuorumRequest
    ) -> EventLoopFuture<AnswerHeader> {
        let request: QuorumRequest
        do throws(QuorumWire.Refusal) {
            request = try read(clusterID.description)
        } catch {
            return eventLoop.makeSucceededFuture(AnswerHeader(error: error.error, epoch: .zero, leader: nil))
        }
        return quorum.ask(request).flatMapThrowing { reply in
            guard case .answer(.voterChange(let header)) = reply else { return reply.mismatch() }
            if header.error == .notLeaderOrFollower { throw ControllerUnavailable.notController }
            return header
        }.flatMapErrorThrowing { error in
            throw error is QuorumShell.Unanswered ? ControllerUnavailable.outcomeUnknown : error
        }
    }
}
