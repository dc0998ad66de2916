internal import MartletController
package import MartletKafkaProtocol
internal import MartletLogModel
package import NIOCore

/// Handlers of requests that the controller decides. Each hands the request to the core and answers when its
/// records are committed.
package enum ControllerHandlers {
    package static func createTopics(_ request: CreateTopicsRequest, _ context: RequestContext) {
        context.respond(
            when: context.services.controller.submit { [random = context.services.random] core in
                var generator = random
                return core.decide(request, generator: &generator)
            })
    }

    /// Versions up to 5 name topics in a field of their own; 6 also takes ids (KIP-516).
    package static func deleteTopics(_ request: DeleteTopicsRequest, _ context: RequestContext) {
        var wanted = request
        if context.version < 6 {
            wanted.topics = request.topicNames.map { name in
                var topic = DeleteTopicsRequest.DeleteTopicState()
                topic.name = name
                return topic
            }
        }
        let decided = wanted
        context.respond(when: context.services.controller.submit { $0.decide(decided) })
    }

    package static func createPartitions(_ request: CreatePartitionsRequest, _ context: RequestContext) {
        context.respond(
            when: context.services.controller.submit { [random = context.services.random] core in
                var generator = random
                return core.decide(request, generator: &generator)
            })
    }

    package static func alterConfigs(_ request: AlterConfigsRequest, _ context: RequestContext) {
        context.respond(when: context.services.controller.submit { $0.decide(request) })
    }

    package static func incrementalAlterConfigs(_ request: IncrementalAlterConfigsRequest, _ context: RequestContext) {
        context.respond(when: context.services.controller.submit { $0.decide(request) })
    }

    package static func describeConfigs(_ request: DescribeConfigsRequest, _ context: RequestContext) {
        context.respond(context.image.describe(request))
    }
}

extension ControllerShell {
    /// Creates topics that a client asked for by name, with the defaults of the broker. Completes whatever the
    /// outcome per topic is.
    package func autoCreateTopics(_ names: [String]) -> EventLoopFuture<Void> {
        var request = CreateTopicsRequest()
        request.topics = names.map { name in
            var topic = CreateTopicsRequest.CreatableTopic()
            topic.name = name
            topic.numPartitions = -1
            topic.replicationFactor = -1
            return topic
        }
        let wanted = request
        return submit { [random] core in
            var generator = random
            return core.decide(wanted, origin: .broker, generator: &generator)
        }.map { _ in }
    }
}
