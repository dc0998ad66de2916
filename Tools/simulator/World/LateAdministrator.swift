internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel

/// An administrator who aborts a hanging transaction by its marker, as `kafka-transactions abort` does, and whose
/// marker arrives when that transaction is long over and the producer's next one is open. It must do nothing.
// SAFETY: confined to the thread that runs the simulation.
final class LateAdministrator: Client, @unchecked Sendable {
    private let places: [Place]
    /// Epochs under which producers had transactions, by producer id.
    private var seen: [Int64: Int32] = [:]

    init(_ world: World, process: Int, places: [Place]) {
        self.places = places
        super.init(
            world, process: process, link: ClientLink(world, "late-\(process)"),
            random: world.stream("late \(process)"))
    }

    override func run() async {
        while world.act == .play {
            await pause(300...3_000)
            let place = random.pick(places)
            for producer in await producers(of: place) where producer.currentTxnStartOffset >= 0 {
                if let epoch = seen[producer.producerID], epoch < producer.producerEpoch {
                    await abort(place, producer.producerID, epoch, producer.coordinatorEpoch)
                }
                seen[producer.producerID] = producer.producerEpoch
            }
        }
    }

    private func producers(of place: Place) async -> [DescribeProducersResponse.ProducerState] {
        var request = DescribeProducersRequest()
        var topic = DescribeProducersRequest.TopicRequest()
        topic.name = place.topic
        topic.partitionIndexes = [Int32(place.partition)]
        request.topics = [topic]
        do {
            let response = try await link.ask(request, version: 0)
            return response.topics.flatMap(\.partitions).flatMap(\.activeProducers)
        } catch {
            return []
        }
    }

    private func abort(_ place: Place, _ producerID: Int64, _ epoch: Int32, _ coordinatorEpoch: Int32) async {
        var marker = WriteTxnMarkersRequest.WritableTxnMarker()
        marker.producerID = producerID
        marker.producerEpoch = Int16(clamping: epoch)
        marker.transactionResult = false
        marker.coordinatorEpoch = coordinatorEpoch
        var topic = WriteTxnMarkersRequest.WritableTxnMarkerTopic()
        topic.name = place.topic
        topic.partitionIndexes = [Int32(place.partition)]
        marker.topics = [topic]
        var request = WriteTxnMarkersRequest()
        request.markers = [marker]
        do {
            _ = try await link.ask(request, version: 1)
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "WriteTxnMarkers: \(cause)") }
        }
    }
}
