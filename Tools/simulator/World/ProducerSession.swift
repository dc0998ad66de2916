internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import NIOCore

/// One batch on its way to the log.
struct OutgoingBatch {
    var place: Place
    var values: [Int64]
    var sequence: Int32
    /// Base offset; nil while it is unknown.
    var offset: Int64?
    var isAcknowledged = false
}

/// How sending ended.
enum SendResult: Equatable {
    case acknowledged
    /// Some batches may be in the log, some not.
    case gaveUp
    /// The broker refused for good: with this producer nothing goes on.
    case refused(ErrorCode)
}

/// Sequences and retries of an idempotent producer (KIP-98): batches of a partition go out in order, several at a
/// time, and again in order after a failure, with the sequences they had.
final class ProducerSession {
    private let world: World
    private let link: ClientLink
    private let random: SimulationRandom
    private(set) var stamp: ProducerStamp?
    private var sequences: [Place: Int32] = [:]

    init(_ world: World, _ link: ClientLink, _ random: SimulationRandom) {
        self.world = world
        self.link = link
        self.random = random
    }

    func begin(_ stamp: ProducerStamp?) {
        if self.stamp != stamp { sequences = [:] }
        self.stamp = stamp
    }

    /// A producer id without a transactional id.
    func initialize() async -> Bool {
        var request = InitProducerIdRequest()
        request.transactionalID = nil
        request.transactionTimeoutMs = 60_000
        do {
            let response = try await link.ask(request, version: 4)
            guard response.errorCode == 0 else { return false }
            begin(ProducerStamp(id: response.producerID, epoch: response.producerEpoch))
            return true
        } catch {
            return false
        }
    }

    func makeBatch(_ place: Place, _ values: [Int64]) -> OutgoingBatch {
        let sequence = sequences[place] ?? 0
        sequences[place] = sequence &+ Int32(values.count)
        return OutgoingBatch(place: place, values: values, sequence: sequence)
    }

    /// Sends batches until all are acknowledged, one is refused, or `deadline` has passed.
    ///
    /// - Parameter transactionalID: set for transactional batches, with the Produce version of its protocol.
    func send(
        _ batches: inout [OutgoingBatch], transactionalID: String?, version: Int16, deadline: Int64
    ) async -> SendResult {
        guard let stamp else { return .gaveUp }
        while true {
            var waves: [(indexes: [Int], askedAt: Int64, reply: Reply<ProduceResponse>)] = []
            // One batch per partition and request; the requests go out together.
            var left = batches.indices.filter { !batches[$0].isAcknowledged }
            while !left.isEmpty {
                var taken: Set<Place> = []
                let wave = left.filter { taken.insert(batches[$0].place).inserted }
                left.removeAll { wave.contains($0) }
                let request = self.request(wave.map { batches[$0] }, stamp, transactionalID)
                let askedAt = world.now
                waves.append((wave, askedAt, link.start(request, version: version)))
            }
            var refusal: ErrorCode?
            var failed: Set<Place> = []
            for (indexes, askedAt, reply) in waves {
                let response: ProduceResponse
                do {
                    response = try await reply.value()
                } catch {
                    if case .malformed(let cause) = error { world.fail("malformed-response", "Produce: \(cause)") }
                    for index in indexes { failed.insert(batches[index].place) }
                    continue
                }
                for index in indexes {
                    let place = batches[index].place
                    guard let part = part(response, place) else {
                        world.fail("missing-partition", "Produce answered without \(place)")
                        continue
                    }
                    let code = ErrorCode(rawValue: part.errorCode)
                    switch code {
                    case .none:
                        world.checkExists(place.topic, askedAt: askedAt)
                        batches[index].isAcknowledged = true
                        if part.baseOffset >= 0 { batches[index].offset = part.baseOffset }
                    case .duplicateSequenceNumber:
                        batches[index].isAcknowledged = true
                    case .outOfOrderSequenceNumber where failed.contains(place):
                        // The batch before it has not arrived; both go again.
                        break
                    case _ where code.asksForPatience:
                        failed.insert(place)
                    case _:
                        refusal = refusal ?? code
                    }
                }
            }
            if batches.allSatisfy(\.isAcknowledged) { return .acknowledged }
            if let refusal { return .refused(refusal) }
            if world.now > deadline || world.act == .over { return .gaveUp }
            await world.pause(nanoseconds: random.nanoseconds(50...300))
        }
    }

    /// Sends a batch that its client gives up at once and that arrives after a while.
    func sendLate(_ batch: OutgoingBatch, transactionalID: String, version: Int16, afterNanoseconds delay: Int64) {
        guard let stamp else { return }
        link.sendLate(request([batch], stamp, transactionalID), version: version, afterNanoseconds: delay)
    }

    private func request(_ batches: [OutgoingBatch], _ stamp: ProducerStamp, _ transactionalID: String?) -> ProduceRequest {
        var request = ProduceRequest()
        request.acks = -1
        request.timeoutMs = 4_000
        request.transactionalID = transactionalID
        let time = 1_700_000_000_000 + (world.now - 1_000_000_000_000) / 1_000_000
        for topic in Set(batches.map(\.place.topic)).sorted() {
            var part = ProduceRequest.TopicProduceData()
            part.name = topic
            part.topicID = world.topicIDs[topic] ?? .zero
            part.partitionData = batches.filter { $0.place.topic == topic }.map { batch in
                var partition = ProduceRequest.PartitionProduceData()
                partition.index = Int32(batch.place.partition)
                partition.records = Batches.encode(
                    batch.values, stamp, sequence: batch.sequence, isTransactional: transactionalID != nil, time: time)
                return partition
            }
            request.topicData.append(part)
        }
        return request
    }

    /// From version 13 on topics go by their ids.
    private func part(_ response: ProduceResponse, _ place: Place) -> ProduceResponse.PartitionProduceResponse? {
        let id = world.topicIDs[place.topic]
        return response.responses.first {
            $0.topicID == .zero ? $0.name == place.topic : $0.topicID == id
        }?.partitionResponses.first {
            Int($0.index) == place.partition
        }
    }
}

extension OutgoingBatch {
    /// The history's view of it.
    var steps: [Step] {
        values.enumerated().map { index, value in
            .send(place, value: value, offset: offset.map { $0 + Int64(index) })
        }
    }
}

/// A process that sends to some partitions, each batch an operation.
// SAFETY: confined to the thread that runs the simulation.
class IdempotentProducer: Client, @unchecked Sendable {
    private let session: ProducerSession
    private let places: [Place]

    init(_ world: World, process: Int, places: [Place]) {
        self.places = places
        let random = world.stream("producer \(process)")
        let link = ClientLink(world, "producer-\(process)")
        session = ProducerSession(world, link, random)
        super.init(world, process: process, link: link, random: random)
    }

    /// Where the next batches go.
    var targets: [Place] { places }

    /// The version of its requests.
    var version: Int16 { Int16(random.int(9..<13)) }

    override func run() async {
        while world.act == .play {
            if session.stamp == nil {
                guard await session.initialize() else {
                    await pause(50...500)
                    continue
                }
            }
            await sendSome()
            await pause(700...9_000)
            if random.chance(1) { link.close() }
        }
    }

    private func sendSome() async {
        let start = world.now
        let places = targets
        guard !places.isEmpty else { return }
        var batches: [OutgoingBatch] = []
        for _ in 0..<random.int(1..<4) {
            let place = random.pick(places)
            let values = (0..<random.int(1..<4)).map { _ in world.takeValue() }
            batches.append(session.makeBatch(place, values))
        }
        let result = await session.send(
            &batches, transactionalID: nil, version: version, deadline: start + 30_000_000_000)
        for batch in batches {
            world.record(process, since: start, batch.isAcknowledged ? .succeeded : .unknown, batch.steps)
        }
        // What is not acknowledged leaves a gap in the sequences: another id then.
        if result != .acknowledged { session.begin(nil) }
    }
}

/// A simulated process that talks to the broker. Does one thing at a time.
// SAFETY: confined to the thread that runs the simulation.
class Client: @unchecked Sendable {
    let world: World
    let process: Int
    let link: ClientLink
    let random: SimulationRandom

    init(_ world: World, process: Int, link: ClientLink, random: SimulationRandom) {
        self.world = world
        self.process = process
        self.link = link
        self.random = random
    }

    /// Lives until the play is over.
    func run() async {}

    /// It sends nothing new once the faults are over.
    var endsWithThePlay: Bool { true }

    func pause(_ milliseconds: ClosedRange<Int64>) async {
        await world.pause(nanoseconds: random.nanoseconds(milliseconds))
    }
}
