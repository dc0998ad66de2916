// Copies records from one topic to another, each exactly once, until a record with the key "last" has been copied.
//
//     example-copy HOST:PORT FROM TO GROUP
//
// Positions are committed in the transaction that holds the copies: kill it at any time and start it again, and readers
// with `isolation = .readCommitted` see neither a gap nor a duplicate. The group's name serves as transactional id, so
// one copy runs per group; a second one that starts shuts the first one out.

import MartletClient

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

let arguments = CommandLine.arguments
guard arguments.count == 5 else {
    print("usage: example-copy HOST:PORT FROM TO GROUP")
    exit(64)
}

var reading = try ConsumerConfiguration(bootstrap: arguments[1], groupID: arguments[4])
reading.offsetReset = .earliest
reading.isolation = .readCommitted
reading.isAutoCommitEnabled = false

var writing = try ProducerConfiguration(bootstrap: arguments[1])
writing.transactionalID = arguments[4]

let consumer = try Consumer(reading)
let producer = try Producer(writing)
try await consumer.subscribe(to: [arguments[2]])

var copied = 0
var isDone = false
while !isDone {
    do {
        var hasLast = false
        copied += try await producer.withTransaction(consuming: consumer) { transaction, records in
            for record in records {
                try await transaction.enqueue(
                    ProducerRecord(
                        topic: arguments[3], key: record.key, value: record.value, headers: record.headers,
                        timestamp: record.timestamp))
                if record.keyString == "last" { hasLast = true }
            }
        }
        // Only now are the copies there.
        isDone = hasLast
    } catch let error as ClientError where error.isRetriable {
        // Rolled back: the consumer is back at the first of these records, and they come again.
        print("again: \(error.message)")
    }
}
print("copied \(copied) records")
try await consumer.close()
try await producer.close()
