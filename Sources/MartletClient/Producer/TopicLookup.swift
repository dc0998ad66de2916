import MartletLogModel
import NIOCore

/// Callers of a producer that wait until a topic's partitions are known, and how long that is worth trying.
// SAFETY: confined to `engine.loop`, like the sender that owns it.
final class TopicLookup: @unchecked Sendable {
    private struct Question {
        var replies: [Reply<Void>] = []
        var attemptCount = 0
        let since = NIODeadline.now()
    }

    /// Answers "unknown" in a row before that is believed; news of a new topic needs a moment to reach all brokers.
    private static let unknownTopicLimit = 5

    private let engine: ClientEngine
    private let accumulator: ProducerAccumulator
    private let configuration: ClientConfiguration
    /// One entry per topic asked for now.
    private var questions: [String: Question] = [:]

    init(engine: ClientEngine, accumulator: ProducerAccumulator, configuration: ClientConfiguration) {
        self.engine = engine
        self.accumulator = accumulator
        self.configuration = configuration
    }

    /// Resolves `reply` once the topic's partitions are known to the accumulator.
    func find(_ topic: String, _ reply: Reply<Void>) {
        if engine.isClosed {
            reply.fail(ClientError.closed("producer"))
        } else if accumulator.partitionCount(of: topic) != nil {
            reply.succeed(())
        } else if let problem = TopicName.problem(topic) {
            reply.fail(ClientError(.invalidArgument, problem))
        } else {
            let isFirst = questions[topic] == nil
            questions[topic, default: Question()].replies.append(reply)
            engine.want(CollectionOfOne(topic))
            if isFirst { ask(topic) }
        }
    }

    /// The topic is known now.
    func found(_ topic: String) { finish(topic, .success(())) }

    /// Nobody will be answered any more.
    func close(_ error: ClientError) {
        for topic in questions.keys.sorted() { finish(topic, .failure(error)) }
    }

    private func finish(_ topic: String, _ result: Result<Void, ClientError>) {
        guard let question = questions.removeValue(forKey: topic) else { return }
        for reply in question.replies { reply.resolve(with: result) }
    }

    private func ask(_ topic: String) {
        engine.refreshMetadata { error in self.answered(topic, error) }
    }

    private func answered(_ topic: String, _ error: ClientError?) {
        guard var question = questions[topic] else { return }
        question.attemptCount += 1
        questions[topic] = question
        let code = engine.topicErrors[topic]
        let isLate = NIODeadline.now() - question.since >= TimeAmount(configuration.operationTimeout)
        if let error, isLate || !error.isRetriable {
            finish(topic, .failure(error))
        } else if error == nil, let code, !code.isRetriable {
            finish(topic, .failure(.broker(code, "topic '\(topic)'")))
        } else if error == nil, code == .unknownTopicOrPartition, question.attemptCount >= Self.unknownTopicLimit {
            engine.unwant(topic)
            finish(topic, .failure(.unknownTopic(topic, askedOf: engine.brokerNames)))
        } else if error == nil, isLate {
            finish(topic, .failure(.broker(code ?? .leaderNotAvailable, "topic '\(topic)'")))
        } else {
            let pause = engine.retryBackoff.pause(after: question.attemptCount)
            engine.loop.assumeIsolated().scheduleTask(in: TimeAmount(pause)) {
                if self.questions[topic] != nil { self.ask(topic) }
            }
        }
    }
}
