// Sends numbered records to a topic and prints where the last one went.
//
//     example-produce HOST:PORT TOPIC COUNT
//
// Each record has a key, so that equal keys stay in order, and a header. `enqueue` only waits for room in the
// producer's buffer; `flush` makes sure that everything has been acknowledged.

import MartletClient

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

let arguments = CommandLine.arguments
guard arguments.count == 4, let count = Int(arguments[3]) else {
    print("usage: example-produce HOST:PORT TOPIC COUNT")
    exit(64)
}

var configuration = try ProducerConfiguration(bootstrap: arguments[1])
configuration.compression = .gzip()

let producer = try Producer(configuration)
for number in 0..<count {
    let record = ProducerRecord(
        topic: arguments[2], key: "key-\(number % 10)", value: "value \(number)",
        headers: [RecordHeader("source", "example-produce")])
    try await producer.enqueue(record)
}
try await producer.flush()

// One more, awaited on its own: the broker's answer says where it is.
let last = try await producer.send(ProducerRecord(topic: arguments[2], key: "last", value: "the end"))
print(
    "sent \(count + 1) records; the last is \(last.topicPartition) at offset \(last.offset?.description ?? "?")"
)
try await producer.close()
