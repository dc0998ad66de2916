import Glibc
import MartletKafkaProtocol
import MartletLogModel
import MartletRecordBatch
import NIOCore

/// A blocking connection that sends one request and reads one response, for tests that look at single exchanges.
final class WireClient {
    enum Failure: Error, CustomStringConvertible {
        case connect(Int32)
        case closed

        var description: String {
            switch self {
            case .connect(let code): "cannot connect: errno \(code)"
            case .closed: "the broker closed the connection"
            }
        }
    }

    private let descriptor: CInt
    private let clientID: String
    private var nextCorrelationID: Int32 = 1

    init(port: Int, clientID: String = "test") throws {
        self.clientID = clientID
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        // By its bytes: whose the fields of `sockaddr_in` are depends on what else this target imports.
        var address = ByteBuffer()
        address.writeInteger(UInt16(AF_INET), endianness: .host)
        address.writeInteger(UInt16(port))
        address.writeBytes([127, 0, 0, 1])
        address.writeRepeatingByte(0, count: 8)
        let outcome = address.withUnsafeReadableBytes { bytes in
            bytes.withMemoryRebound(to: sockaddr.self) {
                connect(descriptor, $0.baseAddress, socklen_t(bytes.count))
            }
        }
        guard outcome == 0 else { throw Failure.connect(errno) }
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    func send(_ bytes: ByteBuffer) {
        var rest = bytes
        while let chunk = rest.readBytes(length: min(rest.readableBytes, 1 << 20)), !chunk.isEmpty {
            var sent = 0
            while sent < chunk.count {
                let count = chunk.withUnsafeBytes {
                    Glibc.send(descriptor, $0.baseAddress! + sent, chunk.count - sent, Int32(MSG_NOSIGNAL))
                }
                guard count > 0 else { return }
                sent += count
            }
        }
    }

    func receive(_ count: Int) throws -> ByteBuffer {
        var buffer = ByteBuffer()
        while buffer.readableBytes < count {
            let missing = count - buffer.readableBytes
            let got = buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: missing) {
                max(0, recv(descriptor, $0.baseAddress, missing, 0))
            }
            guard got > 0 else { throw Failure.closed }
        }
        return buffer
    }

    /// Sends without waiting for the answer.
    func post<Request: KafkaRequest>(_ request: Request, version: Int16) throws {
        send(try encoded(request, version: version))
    }

    /// The whole frame, with the next correlation id.
    func encoded<Request: KafkaRequest>(_ request: Request, version: Int16) throws -> ByteBuffer {
        let correlationID = nextCorrelationID
        nextCorrelationID += 1
        return try Self.frame(request, version: version, correlationID: correlationID, clientID: clientID)
    }

    static func frame<Request: KafkaRequest>(
        _ request: Request, version: Int16, correlationID: Int32, clientID: String = "test"
    ) throws -> ByteBuffer {
        var writer = ProtocolWriter()
        writer.buffer.writeInteger(Int32(0))
        let header = RequestHeader(
            apiKey: Request.apiKey, apiVersion: version, correlationID: correlationID, clientID: clientID)
        try header.encode(into: &writer)
        try request.encode(into: &writer, version: version)
        writer.buffer.setInteger(Int32(writer.buffer.readableBytes - 4), at: 0)
        return writer.buffer
    }

    func read<Response: KafkaResponse>(_ type: Response.Type, version: Int16) throws -> Response {
        var prefix = try receive(4)
        let length = prefix.readInteger(as: Int32.self) ?? 0
        var reader = ProtocolReader(try receive(Int(length)))
        _ = try ResponseHeader(reading: &reader, apiKey: Response.apiKey, version: version)
        return try Response(reading: &reader, version: version)
    }

    func call<Request: KafkaRequest>(_ request: Request, version: Int16? = nil) throws -> Request.Response {
        let version = version ?? Request.versions.upperBound
        try post(request, version: version)
        return try read(Request.Response.self, version: version)
    }
}

extension WireClient {
    @discardableResult
    func createTopic(_ name: String, partitions: Int32 = 1, configs: [String: String] = [:]) throws -> UniversalID {
        let response = try call(CreateTopicsRequest(name, partitions: partitions, replicas: 1, configs: configs))
        guard response.topics.first?.errorCode == 0, let id = response.topics.first?.topicID else {
            throw DecodeFailure(text: "topic not created: \(response)")
        }
        return id
    }

    struct DecodeFailure: Error { var text: String }

    func produce(
        _ batch: ByteBuffer?, topic: String, partition: Int32 = 0, acks: Int16 = -1, version: Int16 = 12,
        transactionalID: String? = nil
    ) throws -> ProduceResponse.PartitionProduceResponse {
        var data = ProduceRequest.PartitionProduceData()
        data.index = partition
        data.records = batch
        var topicData = ProduceRequest.TopicProduceData()
        topicData.name = topic
        topicData.partitionData = [data]
        var request = ProduceRequest()
        request.transactionalID = transactionalID
        request.acks = acks
        request.timeoutMs = 10_000
        request.topicData = [topicData]
        let response = try call(request, version: version)
        guard let result = response.responses.first?.partitionResponses.first else { throw Failure.closed }
        return result
    }

    func fetchRequest(
        _ topic: String, from offset: Int64, partition: Int32 = 0, maxWait: Int32 = 0, maxBytes: Int32 = 1 << 20
    ) -> FetchRequest {
        var part = FetchRequest.FetchPartition()
        part.partition = partition
        part.fetchOffset = offset
        part.partitionMaxBytes = maxBytes
        var topicPart = FetchRequest.FetchTopic()
        topicPart.topic = topic
        topicPart.partitions = [part]
        var request = FetchRequest()
        request.maxWaitMs = maxWait
        request.minBytes = 1
        request.topics = [topicPart]
        return request
    }

    func fetch(_ topic: String, from offset: Int64, maxBytes: Int32 = 1 << 20) throws -> FetchResponse.PartitionData {
        let response = try call(fetchRequest(topic, from: offset, maxBytes: maxBytes), version: 12)
        guard let result = response.responses.first?.partitions.first else { throw Failure.closed }
        return result
    }
}

/// One batch with `values`, as a client would send it.
func makeBatch(
    _ values: [String?], key: String? = "k", codec: CompressionCodec = .none, producerID: Int64 = -1,
    producerEpoch: Int16 = -1, baseSequence: Int32 = -1, timestamp: Int64 = 1_700_000_000_000
) throws -> ByteBuffer {
    var builder = RecordBatchBuilder()
    for value in values {
        try builder.append(
            key: key.map { ByteBuffer(string: $0) }, value: value.map { ByteBuffer(string: $0) }, timestamp: timestamp)
    }
    return try builder.build(
        RecordBatchBuilder.Options(
            codec: codec, producerID: producerID, producerEpoch: producerEpoch, baseSequence: baseSequence))
}

extension CreateTopicsRequest {
    init(_ name: String, partitions: Int32, replicas: Int16, configs: [String: String]) {
        self.init()
        var topic = CreatableTopic()
        topic.name = name
        topic.numPartitions = partitions
        topic.replicationFactor = replicas
        topic.configs = configs.sorted { $0.key < $1.key }.map {
            var config = CreatableTopicConfig()
            config.name = $0.key
            config.value = $0.value
            return config
        }
        topics = [topic]
        timeoutMs = 20_000
    }
}

extension InitProducerIdRequest {
    init(transactionalID: String?) {
        self.init()
        self.transactionalID = transactionalID
        producerID = -1
        producerEpoch = -1
    }
}
