import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// DeleteTopics by name or id (KIP-516). The handler brings versions up to 5 to the list of `topics`.
    package borrowing func decide(_ request: DeleteTopicsRequest) -> Decision<DeleteTopicsResponse> {
        var decision = Decision(response: DeleteTopicsResponse())
        var names: [String: Int] = [:]
        var ids: [UniversalID: Int] = [:]
        for topic in request.topics {
            // A topic named once by name and once by id is the same topic twice.
            if let name = topic.name {
                names[name, default: 0] += 1
            } else {
                ids[topic.topicID, default: 0] += 1
                if let name = state.topics[topic.topicID]?.name { names[name, default: 0] += 1 }
            }
        }
        var reported: Set<String> = []
        for topic in request.topics {
            var result = DeleteTopicsResponse.DeletableTopicResult()
            result.name = topic.name
            result.topicID = topic.topicID
            do throws(Refusal) {
                let image = try target(topic)
                result.name = image.name
                result.topicID = image.id
                if names[image.name, default: 0] > 1 {
                    guard reported.insert(image.name).inserted else { continue }
                    throw .init(.invalidRequest, "Topic \(image.name) appears twice in the request")
                }
                try checkDeletable(image)
                var record = RemoveTopicRecord()
                record.topicID = image.id
                decision.records.append(.removeTopic(record))
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            decision.response.responses.append(result)
        }
        return decision
    }

    private borrowing func target(_ topic: DeleteTopicsRequest.DeleteTopicState) throws(Refusal) -> TopicImage
    {
        if let name = topic.name {
            guard topic.topicID == .zero else {
                throw .init(.invalidRequest, "A topic is given by name and by id; give one of them")
            }
            guard let image = state.topic(named: name) else {
                throw .init(.unknownTopicOrPartition, "There is no topic '\(ConfigText.shortened(name))'")
            }
            return image
        }
        guard topic.topicID != .zero else {
            throw .init(.invalidRequest, "A topic is given neither by name nor by id")
        }
        guard let image = state.topics[topic.topicID] else {
            throw .init(.unknownTopicID, "There is no topic with id \(topic.topicID)")
        }
        return image
    }

    private borrowing func checkDeletable(_ topic: TopicImage) throws(Refusal) {
        guard state.brokerConfiguration.deleteTopicEnable else {
            throw .init(
                .topicDeletionDisabled,
                "Topics cannot be deleted: delete.topic.enable is false on this cluster")
        }
        guard !topic.isInternal else {
            throw .init(
                .invalidRequest,
                "Topic \(topic.name) is internal; deleting it would lose what it keeps for all groups")
        }
    }
}
