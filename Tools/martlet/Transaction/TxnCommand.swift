import ArgumentParser
import MartletClient
import MartletLogModel

struct TxnCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "txn",
        abstract: "List, look at and abort transactions; find those that hang.",
        subcommands: [TxnList.self, TxnDescribe.self, TxnProducers.self, TxnAbort.self, TxnFindHanging.self],
        aliases: ["transaction", "transactions"])
}

struct TxnList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List transactional ids.",
        discussion: """
            Examples:
              martlet txn list
              martlet txn list --state Ongoing --open-for 60
              martlet txn list --matching 'copy-.*' --json
            """,
        aliases: ["ls"])

    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Option(help: "Only ids in this state, such as Ongoing or PrepareCommit; may be repeated.") var state: [String] = []
    @Option(help: "Only this producer; may be repeated.") var producerID: [Int64] = []
    @Option(
        help: ArgumentHelp("Only transactions that are open for longer than so many seconds.", valueName: "seconds"))
    var openFor: Double?
    @Option(
        name: [.long, .customLong("transactional-id-pattern")],
        help: ArgumentHelp("Only ids that match as a whole (RE2 syntax).", valueName: "pattern"))
    var matching: String?
    @Option(help: .hidden) var durationFilter: Int64?

    func run() async throws {
        if let openFor, openFor < 0 || openFor > 1e9 {
            throw CommandFailure("--open-for is \(openFor); allowed: 0 to 1000000000 seconds", exitCode: .usage)
        }
        let longerThan = openFor.map { Duration.seconds($0) } ?? durationFilter.map { Duration.milliseconds($0) }
        let found = try await connection.withAdmin {
            try await $0.listTransactions(
                states: state, producerIDs: producerID, longerThan: longerThan, matching: matching)
        }
        if listing.json {
            return try Console.print(
                .array(
                    found.map {
                        .object([
                            ("transactionalID", .string($0.transactionalID)), ("producerID", .integer($0.producerID)),
                            ("state", .string($0.state)), ("coordinator", .integer(Int64($0.coordinator.rawValue))),
                        ])
                    }))
        }
        var table = TextTable("TRANSACTIONAL ID", "PRODUCER#", "STATE", "COORDINATOR#")
        for item in found {
            table.add(item.transactionalID, "\(item.producerID)", item.state, item.coordinator.description)
        }
        if table.isEmpty { Console.note("no transactional ids") } else { try Console.print(table.text) }
    }
}

struct TxnDescribe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "describe",
        abstract: "Show what the coordinator knows of transactional ids.",
        discussion: """
            Examples:
              martlet txn describe copy-1
              martlet txn describe copy-1 copy-2 --json
            """)

    @Argument(help: "Transactional ids.") var ids: [String] = []
    @Option(name: .customLong("transactional-id"), help: .hidden) var more: [String] = []
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions

    func run() async throws {
        let names = ids + more
        guard !names.isEmpty else { throw CommandFailure("no transactional id is named", exitCode: .usage) }
        let results = try await connection.withAdmin { try await $0.describeTransactions(names) }
        var failures = Failures()
        var found: [TransactionDescription] = []
        for name in names {
            switch results[name] {
            case .success(let description): found.append(description)
            case .failure(let error) where error.brokerCode == .transactionalIDNotFound:
                failures.add("'\(name)'", "no coordinator knows this transactional id; `martlet txn list` shows them")
            case .failure(let error): failures.add(name, error)
            case nil: continue
            }
        }
        if listing.json {
            try Console.print(.array(found.map { json($0) }))
        } else {
            for (index, description) in found.enumerated() {
                try Console.print((index > 0 ? "\n" : "") + text(description))
            }
        }
        try failures.throwIfAny()
    }

    private func text(_ transaction: TransactionDescription) -> String {
        var text =
            "transactional id \(transaction.transactionalID)  state \(transaction.state)  coordinator "
            + "\(transaction.coordinator)  producer \(transaction.producerID)  epoch \(transaction.producerEpoch)  timeout "
            + "\(transaction.timeout.components.seconds) s\n"
        if let start = transaction.startedAt {
            text += "since \(CivilTime.text(milliseconds: start.rawValue))\n"
        }
        if !transaction.partitions.isEmpty {
            text += "partitions: " + transaction.partitions.map(\.description).joined(separator: ", ") + "\n"
        }
        return text
    }

    private func json(_ transaction: TransactionDescription) -> JSONValue {
        .object([
            ("transactionalID", .string(transaction.transactionalID)), ("state", .string(transaction.state)),
            ("coordinator", .integer(Int64(transaction.coordinator.rawValue))),
            ("producerID", .integer(transaction.producerID)),
            ("producerEpoch", .integer(Int64(transaction.producerEpoch))),
            ("timeoutSeconds", .integer(transaction.timeout.components.seconds)),
            ("startedAt", .optional(transaction.startedAt) { .integer($0.rawValue) }),
            ("partitions", .array(transaction.partitions.map { .string($0.description) })),
        ])
    }
}

/// Partitions on the command line: `TOPIC` for all of a topic or `TOPIC:N` for one.
struct PartitionChoice: ParsableArguments {
    @Option(
        help: ArgumentHelp("Topic, or one partition of it as TOPIC:N; may be repeated.", valueName: "topic[:n]"))
    var topic: [String] = []
    @Option(help: .hidden) var partition: Int32?

    /// The partitions that are named; of all topics if none is, internal ones included.
    func resolve(_ admin: Admin, broker: BrokerID? = nil) async throws -> [TopicPartition] {
        var wanted: [String: Set<Int32>] = [:]
        for text in topic {
            let parts = text.split(separator: ":", maxSplits: 1)
            guard let name = parts.first else {
                throw CommandFailure("--topic '\(text)' names no topic", exitCode: .usage)
            }
            var indexes = wanted[String(name)] ?? []
            if parts.count > 1 {
                guard let index = Int32(parts[1]), index >= 0 else {
                    throw CommandFailure("--topic '\(text)' is not TOPIC or TOPIC:N", exitCode: .usage)
                }
                indexes.insert(index)
            } else if let partition {
                indexes.insert(partition)
            }
            wanted[String(name)] = indexes
        }
        let names = topic.isEmpty ? try await admin.listTopics(includeInternal: true).map(\.name) : wanted.keys.sorted()
        var partitions: [TopicPartition] = []
        for (name, result) in try await admin.describeTopics(names) {
            let all = try result.get().partitions.filter { broker == nil || $0.leader == broker }
            let indexes = wanted[name] ?? []
            for index in indexes where !all.contains(where: { $0.index.rawValue == index }) {
                throw CommandFailure("topic '\(name)' has no partition \(index)\(broker == nil ? "" : " on this broker")")
            }
            for item in all where indexes.isEmpty || indexes.contains(item.index.rawValue) {
                partitions.append(TopicPartition(name, item.index.rawValue))
            }
        }
        return partitions.sorted()
    }
}

struct TxnProducers: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "producers",
        abstract: "Show the producers that partitions keep state of.",
        discussion: """
            Examples:
              martlet txn producers --topic orders:3
              martlet txn producers --topic orders --open --json
            """,
        aliases: ["describe-producers"])

    @OptionGroup var choice: PartitionChoice
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions
    @Flag(help: "Only those with a transaction that is open there.") var open = false

    func run() async throws {
        let rows = try await connection.withAdmin { admin in
            let partitions = try await choice.resolve(admin)
            return try await admin.describeProducers(partitions).sorted { $0.key < $1.key }.flatMap { entry in
                try entry.value.get().filter { !open || $0.transactionStart != nil }.map { (entry.key, $0) }
            }
        }
        if listing.json { return try Console.print(.array(rows.map { TxnReport.json($0.0, $0.1) })) }
        var table = TextTable(
            "TOPIC", "PARTITION#", "PRODUCER#", "EPOCH#", "SEQUENCE#", "LAST", "COORDINATOR EPOCH#", "OPEN SINCE OFFSET#")
        for (partition, producer) in rows {
            table.add(
                partition.topic, partition.partition.description, "\(producer.producerID)", "\(producer.producerEpoch)",
                producer.lastSequence.map { "\($0)" } ?? "-",
                producer.lastTimestamp.map { CivilTime.text(milliseconds: $0.rawValue) } ?? "-",
                producer.coordinatorEpoch.map { "\($0)" } ?? "-", producer.transactionStart?.description ?? "-")
        }
        if table.isEmpty { Console.note("no producers") } else { try Console.print(table.text) }
    }
}

enum TxnReport {
    static func json(_ partition: TopicPartition, _ producer: PartitionProducer) -> JSONValue {
        .object([
            ("topic", .string(partition.topic)), ("partition", .integer(Int64(partition.partition.rawValue))),
            ("producerID", .integer(producer.producerID)), ("producerEpoch", .integer(Int64(producer.producerEpoch))),
            ("lastSequence", .optional(producer.lastSequence) { .integer(Int64($0)) }),
            ("lastTimestamp", .optional(producer.lastTimestamp) { .integer($0.rawValue) }),
            ("coordinatorEpoch", .optional(producer.coordinatorEpoch) { .integer(Int64($0)) }),
            ("startOffset", .optional(producer.transactionStart) { .integer($0.rawValue) }),
        ])
    }
}

struct TxnAbort: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "abort",
        abstract: "Abort the transaction of a transactional id, or a hanging one in a partition.",
        discussion: """
            With a transactional id the coordinator aborts what is open and shuts the
            producer out. With --topic TOPIC:N and the offset where the transaction
            begins, the partition gets an abort marker of its own: for transactions
            that `martlet txn find-hanging` reports, of which no coordinator knows. One
            that its coordinator still knows is refused, as it would be torn; --force
            does it all the same.

            Examples:
              martlet txn abort copy-1
              martlet txn abort --topic orders:3 --start-offset 1200
              martlet txn abort --topic orders:3 --producer-id 42 --producer-epoch 7 --coordinator-epoch 0
            """)

    @Argument(help: "Transactional id whose transaction is to be aborted.") var id: String?
    @Option(name: .customLong("transactional-id"), help: .hidden) var idOption: String?
    @OptionGroup var choice: PartitionChoice
    @Option(
        help: ArgumentHelp("First offset of the transaction in the partition.", valueName: "offset"))
    var startOffset: Int64?
    @Option(help: ArgumentHelp("Instead of --start-offset: the producer.", valueName: "id")) var producerID: Int64?
    @Option(help: ArgumentHelp("Its epoch.", valueName: "epoch")) var producerEpoch: Int16?
    @Option(help: ArgumentHelp("Epoch of its coordinator; 0 unless known.", valueName: "epoch"))
    var coordinatorEpoch: Int32?
    @Flag(help: "Write the marker although the coordinator knows the transaction.") var force = false
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions

    func run() async throws {
        if let id = id ?? idOption {
            guard choice.topic.isEmpty else {
                throw CommandFailure("name a transactional id or a partition, not both", exitCode: .usage)
            }
            return try await abort(id)
        }
        guard !choice.topic.isEmpty else {
            throw CommandFailure(
                "nothing is named to abort", remedy: "name a transactional id, or --topic TOPIC:N with --start-offset",
                exitCode: .usage)
        }
        try await abortInPartition()
    }

    private func abort(_ id: String) async throws {
        let before = try await connection.withAdmin { admin in
            let before = try await admin.describeTransaction(id)
            try await admin.fenceProducer(id)
            return before
        }
        let wasOpen = before.state == "Ongoing"
        if listing.json {
            return try Console.print(
                .object([
                    ("transactionalID", .string(id)), ("aborted", .bool(wasOpen)),
                    ("producerID", .integer(before.producerID)), ("producerEpoch", .integer(Int64(before.producerEpoch))),
                ]))
        }
        try Console.print(
            wasOpen
                ? "aborted the transaction of \(id) in \(before.partitions.count) partitions and shut its producer out"
                : "no transaction of \(id) was open (state \(before.state)); its producer is shut out")
    }

    private func abortInPartition() async throws {
        let (partition, producer) = try await connection.withAdmin { admin in
            let partitions = try await choice.resolve(admin)
            guard partitions.count == 1, let partition = partitions.first else {
                throw CommandFailure("abort takes one partition, as TOPIC:N", exitCode: .usage)
            }
            let producers = try await admin.describeProducers([partition])[partition]?.get() ?? []
            let found = try chosen(producers, partition)
            if !force { try await refuseIfAlive(admin, partition, found.id) }
            try await admin.writeAbortMarker(
                partition, producerID: found.id, producerEpoch: found.epoch, coordinatorEpoch: found.coordinatorEpoch)
            return (partition, found)
        }
        if listing.json {
            return try Console.print(
                .object([
                    ("topic", .string(partition.topic)), ("partition", .integer(Int64(partition.partition.rawValue))),
                    ("aborted", .bool(true)), ("producerID", .integer(producer.id)),
                    ("producerEpoch", .integer(Int64(producer.epoch))),
                ]))
        }
        try Console.print("aborted the transaction of producer \(producer.id), epoch \(producer.epoch), in \(partition)")
    }

    private func chosen(
        _ producers: [PartitionProducer], _ partition: TopicPartition
    ) throws -> (id: Int64, epoch: Int16, coordinatorEpoch: Int32) {
        if let startOffset {
            guard let producer = producers.first(where: { $0.transactionStart?.rawValue == startOffset }) else {
                throw CommandFailure(
                    "no transaction of \(partition) begins at offset \(startOffset)",
                    remedy: "`martlet txn producers --topic \(partition.topic):\(partition.partition) --open` shows those "
                        + "that are open")
            }
            return (producer.producerID, producer.producerEpoch, coordinatorEpoch ?? producer.coordinatorEpoch ?? 0)
        }
        guard let producerID, let producerEpoch else {
            throw CommandFailure(
                "neither --start-offset nor --producer-id with --producer-epoch is given", exitCode: .usage)
        }
        return (producerID, producerEpoch, coordinatorEpoch ?? 0)
    }

    private func refuseIfAlive(_ admin: Admin, _ partition: TopicPartition, _ producerID: Int64) async throws {
        let ids = try await admin.listTransactions(producerIDs: [producerID]).map(\.transactionalID)
        for (id, result) in try await admin.describeTransactions(ids) {
            guard try result.get().partitions.contains(partition) else { continue }
            throw CommandFailure(
                "the transaction is not hanging: its coordinator knows it as part of '\(id)'",
                remedy: "`martlet txn abort \(id)` aborts all of it; --force writes the marker into \(partition) alone")
        }
    }
}

struct TxnFindHanging: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "find-hanging",
        abstract: "Find transactions that hold back readers and that nobody will end.",
        discussion: """
            Looks at the producers of each partition for transactions that have been
            open for longer than --open-for, and asks the coordinators for each of
            them. Those of which no coordinator knows are reported; nothing is changed.
            Without --topic all partitions are looked at, those of internal topics
            included.

            Examples:
              martlet txn find-hanging
              martlet txn find-hanging --topic orders --open-for 60 --json
              martlet txn find-hanging --broker 3
            """)

    @OptionGroup var choice: PartitionChoice
    @Option(
        name: [.long, .customLong("broker-id")],
        help: ArgumentHelp("Only partitions that this broker leads.", valueName: "id"))
    var broker: Int32?
    @Option(
        help: ArgumentHelp(
            "Seconds a transaction must be open; the brokers' largest transaction timeout by default (15 minutes).",
            valueName: "seconds"))
    var openFor: Double = 900
    @Option(help: .hidden) var maxTransactionTimeout: Double?
    @OptionGroup var connection: ConnectionOptions
    @OptionGroup var listing: ListingOptions

    private static let secondsPerMinute = 60.0

    func run() async throws {
        let seconds = maxTransactionTimeout.map { $0 * Self.secondsPerMinute } ?? openFor
        guard seconds >= 0, seconds <= 1e9 else {
            throw CommandFailure("--open-for is \(seconds); allowed: 0 to 1000000000 seconds", exitCode: .usage)
        }
        var progress = Progress()
        let (found, count) = try await connection.withAdmin { admin in
            let partitions = try await choice.resolve(admin, broker: broker.map { BrokerID($0) })
            let found = try await admin.findHangingTransactions(
                in: partitions, olderThan: .seconds(seconds),
                now: Timestamp(milliseconds: SystemCall.wallMilliseconds())
            ) { checked in
                progress.show { "looked at \(checked) of \(partitions.count) partitions" }
            }
            return (found, partitions.count)
        }
        progress.clear()
        if listing.json {
            return try Console.print(
                .array(
                    found.map { item in
                        guard case .object(let fields) = TxnReport.json(item.topicPartition, item.producer) else {
                            return .null
                        }
                        return .object(
                            fields + [("transactionalID", .optional(item.transactionalID) { .string($0) })])
                    }))
        }
        guard !found.isEmpty else {
            Console.note("no hanging transactions in \(count) partitions")
            return
        }
        var table = TextTable(
            "TOPIC", "PARTITION#", "START OFFSET#", "PRODUCER#", "EPOCH#", "LAST", "TRANSACTIONAL ID")
        for item in found {
            table.add(
                item.topicPartition.topic, item.topicPartition.partition.description,
                item.producer.transactionStart?.description ?? "-", "\(item.producer.producerID)",
                "\(item.producer.producerEpoch)",
                item.producer.lastTimestamp.map { CivilTime.text(milliseconds: $0.rawValue) } ?? "-",
                item.transactionalID ?? "-")
        }
        try Console.print(table.text)
        Console.note("end one with: martlet txn abort --topic TOPIC:PARTITION --start-offset OFFSET")
    }
}
