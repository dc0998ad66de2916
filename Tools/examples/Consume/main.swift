// Reads a topic as a member of a group until a record with the key "last" comes, and prints the records.
//
//     example-consume HOST:PORT TOPIC GROUP
//
// Start it twice with the same group and the partitions are shared. Positions are committed by `close`.

import MartletClient

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

let arguments = CommandLine.arguments
guard arguments.count == 4 else {
    print("usage: example-consume HOST:PORT TOPIC GROUP")
    exit(64)
}

var configuration = try ConsumerConfiguration(bootstrap: arguments[1], groupID: arguments[3])
configuration.offsetReset = .earliest
configuration.assignmentStrategies = [.cooperativeSticky]

let consumer = try Consumer(configuration)
try await consumer.subscribe(to: [arguments[2]])
var count = 0
for try await record in consumer.records {
    print(
        "\(record.topicPartition) @\(record.offset) \(record.keyString ?? "-"): \(record.valueString ?? "-")")
    count += 1
    if record.keyString == "last" { break }
}
print("read \(count) records")
try await consumer.close()
