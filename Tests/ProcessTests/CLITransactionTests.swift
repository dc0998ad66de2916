import MartletClient
import MartletLogModel
import MartletTestSupport
import Testing

/// `martlet txn`.
@Suite struct CLITransactionTests {
    private struct Interrupted: Error {}

    @Test(.timeLimit(.minutes(3))) func `transactions are listed, described, refused as hanging, and aborted`() async throws {
        let folder = TemporaryFolder()
        let daemon = try DaemonProcess(in: folder)
        let cli = CLI(daemon, folder)
        try cli.ok("topic", "create", "orders", "--partitions", "2")
        #expect(try cli.run("txn", "list").errorOutput.contains("no transactional ids"))
        var configuration = try ProducerConfiguration(bootstrap: daemon.address)
        configuration.transactionalID = "copy-1"
        let producer = try Producer(configuration)
        await #expect { 
            try await producer.withTransaction { transaction in
                try await transaction.send(ProducerRecord(topic: "orders", partition: PartitionIndex(1), value: "a"))

                let list = try cli.ok("txn", "list", "--state", "Ongoing", "--matching", "copy-[0-9]")
                #expect(list.contains("TRANSACTIONAL ID") && list.contains("copy-1") && list.contains("Ongoing"))
                #expect(try cli.ok("kafka-transactions.sh", "list", "--json").contains("\"state\": \"Ongoing\""))
                let described = try cli.ok("txn", "describe", "copy-1")
                #expect(described.contains("state Ongoing") && described.contains("partitions: orders-1"))
                #expect(try cli.ok("txn", "describe", "copy-1", "--json").contains("\"orders-1\""))
                let absent = try cli.run("txn", "describe", "nobody")
                #expect(absent.status == 1 && absent.errorOutput.contains("'nobody'"))
                let producers = try cli.ok("txn", "producers", "--topic", "orders", "--open", "--json")
                #expect(producers.contains("\"startOffset\": 0") && producers.contains("\"partition\": 1"))
                #expect(!producers.contains("\"partition\": 0"))
                let none = try cli.run("txn", "find-hanging", "--open-for", "0")
                #expect(none.status == 0 && none.errorOutput.contains("no hanging transactions"))
                #expect(try cli.ok("txn", "find-hanging", "--topic", "orders:1", "--open-for", "0", "--json") == "[]\n")

                let alive = try cli.run("txn", "abort", "--topic", "orders:1", "--start-offset", "0")
                #expect(alive.status == 1 && alive.errorOutput.contains("martlet txn abort copy-1"))
                let wrong = try cli.run("txn", "abort", "--topic", "orders:1", "--start-offset", "7")
                #expect(wrong.status == 1 && wrong.errorOutput.contains("offset 7"))
                #expect(try cli.run("txn", "abort").status == 64)
                #expect(try cli.run("txn", "abort", "--topic", "orders").status == 64)

                let aborted = try cli.ok("txn", "abort", "copy-1", "--json")
                #expect(aborted.contains("\"aborted\": true"))
                #expect(try cli.ok("txn", "abort", "copy-1").contains("no transaction of copy-1 was open"))
            }
        } throws: { ($0 as? ClientError)?.code == .fenced }
        try await producer.close()
        #expect(try cli.records(of: "orders", "--read-committed").isEmpty)

        let second = try Producer(configuration)
        await #expect(throws: (any Error).self) {
            try await second.withTransaction { transaction in
                try await transaction.send(ProducerRecord(topic: "orders", partition: PartitionIndex(0), value: "b"))
                let forced = try cli.ok(
                    "txn", "abort", "--topic", "orders:0", "--start-offset", "0", "--force", "--json")
                #expect(forced.contains("\"aborted\": true"))
                #expect(try !cli.ok("txn", "producers", "--topic", "orders", "--json").contains("\"startOffset\": 0"))
                throw Interrupted()
            }
        }
        try await second.close()
        #expect(try cli.records(of: "orders", "--read-committed").isEmpty)
    }
}
