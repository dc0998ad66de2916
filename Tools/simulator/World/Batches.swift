internal import MartletChecker
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletRecordBatch
internal import NIOCore

/// A producer's identity as the broker gave it.
struct ProducerStamp: Equatable {
    var id: Int64
    var epoch: Int16
}

/// Record batches as simulated clients make and read them; written for the simulator, so that a mistake of our
/// client cannot hide one of our broker.
enum Batches {
    static func encode(
        _ values: [Int64], _ producer: ProducerStamp, sequence: Int32, isTransactional: Bool, time: Int64
    ) -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 256)
        do {
            for value in values {
                var bytes = ByteBuffer()
                bytes.writeInteger(value)
                // A record's size depends on its value, so that batches end anywhere in a sector.
                bytes.writeRepeatingByte(UInt8(ascii: "."), count: Int(value % 61))
                try builder.append(key: nil, value: bytes, timestamp: time)
            }
            return try builder.build(
                RecordBatchBuilder.Options(
                    producerID: producer.id, producerEpoch: producer.epoch, baseSequence: sequence,
                    isTransactional: isTransactional))
        } catch {
            preconditionFailure("a client's own batch cannot be built: \(error)")
        }
    }

    /// Committed records from `position` on, and where to go on.
    static func decode(
        _ bytes: ByteBuffer, _ place: Place, from position: Int64,
        aborted: [(producerID: Int64, firstOffset: Int64)]
    ) throws -> (records: [SeenRecord], next: Int64) {
        var pending = aborted.sorted { $0.firstOffset < $1.firstOffset }[...]
        var open: Set<Int64> = []
        var rest = bytes
        var records: [SeenRecord] = []
        var next = position
        while rest.readableBytes >= RecordBatchHeader.byteCount {
            let header = try RecordBatchHeader(reading: rest)
            // A last batch may be cut short.
            guard let batch = rest.readSlice(length: header.totalByteCount) else { break }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            while let first = pending.first, first.firstOffset <= header.lastOffset {
                open.insert(first.producerID)
                pending.removeFirst()
            }
            if header.isControl {
                if try EndTransactionMarker(batch: batch)?.commits == false { open.remove(header.producerID) }
            } else if !(header.isTransactional && open.contains(header.producerID)) {
                var iterator = try RecordIterator(batch)
                while let view = try iterator.next() {
                    guard view.offset.rawValue >= position, var value = view.value,
                        let number = value.readInteger(as: Int64.self)
                    else { continue }
                    records.append(SeenRecord(place, view.offset.rawValue, number))
                }
            }
            next = max(next, header.lastOffset + 1)
        }
        return (records, next)
    }
}

/// Reads partitions with Fetch requests, as a read_committed consumer.
final class FetchingReader {
    private let world: World
    private let link: ClientLink
    private let random: SimulationRandom
    /// Topics go by their ids (Fetch 13): one that is created anew is another one.
    var usesIDs = false
    /// Called when what is stored turns out to be damaged, by the broker or by its checksum. Nil where it must not.
    var damaged: ((Place) -> Void)?
    /// Offset of the next record of each partition read.
    var positions: [Place: Int64] = [:]
    /// Partitions where nothing was left at the last look, and no transaction was open.
    private(set) var atEnd: Set<Place> = []

    init(_ world: World, _ link: ClientLink, _ random: SimulationRandom) {
        self.world = world
        self.link = link
        self.random = random
    }

    /// One Fetch of all partitions; empty if there was nothing, or no answer.
    func poll(waitMilliseconds: Int32 = 300) async -> [SeenRecord] {
        var request = FetchRequest()
        request.maxWaitMs = waitMilliseconds
        request.minBytes = 1
        request.maxBytes = 1 << 20
        request.isolationLevel = 1
        let limit: Int32 = random.chance(20) ? Int32(random.int(1..<400)) : 1 << 16
        for topic in Set(positions.keys.map(\.topic)).sorted() {
            var part = FetchRequest.FetchTopic()
            part.topic = topic
            part.topicID = world.topicIDs[topic] ?? .zero
            part.partitions = positions.keys.filter { $0.topic == topic }.sorted().map { place in
                var partition = FetchRequest.FetchPartition()
                partition.partition = Int32(place.partition)
                partition.fetchOffset = positions[place] ?? 0
                partition.partitionMaxBytes = limit
                return partition
            }
            request.topics.append(part)
        }
        let asked = positions
        let start = world.now
        let response: FetchResponse
        do {
            response = try await link.ask(request, version: usesIDs ? 13 : 12)
        } catch {
            if case .malformed(let cause) = error { world.fail("malformed-response", "Fetch: \(cause)") }
            return []
        }
        var records: [SeenRecord] = []
        for topic in response.responses {
            let name = usesIDs ? world.topicNames[topic.topicID] ?? "?" : topic.topic
            for partition in topic.partitions {
                let place = Place(name, Int(partition.partitionIndex))
                guard let position = asked[place], positions[place] == position else { continue }
                records += take(partition, place, position, start)
            }
        }
        return records
    }

    private func take(
        _ partition: FetchResponse.PartitionData, _ place: Place, _ position: Int64, _ start: Int64
    ) -> [SeenRecord] {
        let code = ErrorCode(rawValue: partition.errorCode)
        guard code == .none else {
            let isExpected = code == .unknownTopicID && world.deletions[place.topic] != nil
            if let damaged, code == .kafkaStorageError || code == .corruptMessage {
                damaged(place)
            } else if !code.asksForPatience, !isExpected {
                world.fail("fetch-error", "\(place) at \(position): \(code.name)")
            }
            return []
        }
        world.checkExists(place.topic, askedAt: start)
        world.observe(
            place, highWatermark: partition.highWatermark, lastStable: partition.lastStableOffset, askedAt: start)
        do {
            let (records, next) = try Batches.decode(
                partition.records ?? ByteBuffer(), place, from: position,
                aborted: (partition.abortedTransactions ?? []).map { ($0.producerID, $0.firstOffset) })
            if let last = records.last, last.offset >= partition.highWatermark {
                world.fail("read-above-high-watermark", "\(place) \(last.offset) >= \(partition.highWatermark)")
            }
            positions[place] = next
            if next >= partition.highWatermark, partition.lastStableOffset == partition.highWatermark {
                atEnd.insert(place)
            } else {
                atEnd.remove(place)
            }
            return records
        } catch {
            if let damaged {
                damaged(place)
            } else {
                world.fail("unreadable-batch", "\(place) from \(position): \(error)")
            }
            return []
        }
    }
}
