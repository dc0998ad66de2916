import MartletBroker
import MartletController
import MartletKafkaProtocol
import MartletLogModel
import NIOCore
import Testing

@Suite(.timeLimit(.minutes(1))) struct `The controller's log and what is known of it` {
    @Test func `a record that the core does not take ends the controller, for it is in the log`() async throws {
        try await withTemporaryFolder { folder in
            let broker = try SteppedBroker(folder: folder)
            let controller = broker.loop.services.controller
            func submit(_ records: [MetadataRecord]) throws -> Int {
                let answer = controller.submit { _ in Decision(records: records, response: 1) }
                broker.advance(by: .nanoseconds(0))
                return try answer.wait()
            }
            #expect(try submit([]) == 1)
            var partition = PartitionRecord()
            partition.topicID = UniversalID(high: 1, low: 2)
            #expect(throws: ReplayError.self) { _ = try submit([.partition(partition)]) }
            // Nothing is answered any more out of a core that is not what the log says.
            let error = #expect(throws: MetadataLogError.self) { _ = try submit([]) }
            #expect(error?.description.contains("restart the broker") == true)
            try broker.stop()
        }
    }
}
