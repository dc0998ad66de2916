import MartletLogModel
import Testing

@testable import MartletClient

@Suite struct ConfigurationTests {
    @Test func `addresses parse in all their forms`() throws {
        #expect(try BrokerAddress("a.example:9093") == BrokerAddress(host: "a.example", port: 9093))
        #expect(try BrokerAddress("localhost") == BrokerAddress(host: "localhost", port: 9092))
        #expect(try BrokerAddress("[::1]:19092") == BrokerAddress(host: "::1", port: 19092))
        #expect(try BrokerAddress("[::1]").description == "[::1]:9092")
        #expect(
            try BrokerAddress.list(" a:1 , b:2,") == [.init(host: "a", port: 1), .init(host: "b", port: 2)])
    }

    @Test(arguments: [
        "", ":1", "a:", "a:0", "a:65536", "a:b", "::1", "[::1", "[::1]x", "a b:1", "http://a:1", " , ",
    ])
    func `a wrong address names itself and the form expected`(text: String) {
        #expect { try BrokerAddress.list(text) } throws: { error in
            guard let error = error as? ClientError else { return false }
            return error.code == .invalidConfiguration && (error.message.contains("HOST:PORT"))
        }
    }

    @Test func `wrong producer settings name key, value and what is allowed`() throws {
        func message(_ change: (inout ProducerConfiguration) -> Void) throws -> String {
            var configuration = try ProducerConfiguration(bootstrap: "localhost:1")
            change(&configuration)
            do {
                _ = try Producer(configuration)
                return ""
            } catch {
                #expect(error.code == .invalidConfiguration)
                return error.message
            }
        }
        #expect(try message { $0.acknowledgement = .leader }.contains("isIdempotent"))
        #expect(try message { $0.inFlightLimit = 6 }.contains("inFlightLimit is 6; allowed: 1 to 5"))
        #expect(try message { $0.compression = .gzip(level: 10) }.contains("1 to 9"))
        #expect(try message { $0.bufferBytes = 1 }.contains("bufferBytes is 1"))
        #expect(try message { $0.linger = .milliseconds(-1) }.contains("linger"))
        #expect(try message { _ in }.isEmpty)
    }

    @Test func `wrong consumer settings name key, value and what is allowed`() throws {
        func message(_ change: (inout ConsumerConfiguration) -> Void) throws -> String {
            var configuration = try ConsumerConfiguration(bootstrap: "localhost:1", groupID: "g")
            change(&configuration)
            do {
                _ = try Consumer(configuration)
                return ""
            } catch {
                return error.message
            }
        }
        #expect(
            try message { $0.assignmentStrategies = [.cooperativeSticky, .range] }.contains("cooperative"))
        #expect(try message { $0.heartbeatInterval = .seconds(60) }.contains("sessionTimeout"))
        #expect(try message { $0.groupID = "" }.contains("groupID"))
        #expect(try message { $0.fetchMaximumBytes = 1 << 40 }.contains("responseByteLimit"))
        #expect(try message { _ in }.isEmpty)
    }

    @Test func `compression parses Kafka's names and levels`() throws {
        #expect(try Compression("none") == .none)
        #expect(try Compression("gzip") == .gzip())
        #expect(try Compression("gzip:1") == .gzip(level: 1))
        #expect(try Compression("zstd:19") == .zstd(level: 19))
        for text in ["", "gzip:0", "gzip:x", "lz4:3", "brotli", "zstd:"] {
            #expect(throws: ClientError.self) { try Compression(text) }
        }
    }

    @Test func `pauses double up to the limit and are spread`() {
        let backoff = Backoff(first: .milliseconds(100), limit: .seconds(1))
        var generator = SystemRandomNumberGenerator()
        for (failures, expected) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (1000, 1000)] {
            let pause = backoff.pause(after: failures, using: &generator)
            #expect(pause >= .milliseconds(expected) * 0.79 && pause <= .milliseconds(expected) * 1.21)
        }
    }

    @Test func `durations become wire milliseconds without overflow`() {
        #expect(Duration.milliseconds(1).wireMilliseconds == 1)
        #expect(Duration.microseconds(1).wireMilliseconds == 1)
        #expect(Duration.zero.wireMilliseconds == 0)
        #expect(Duration.seconds(-5).wireMilliseconds == 0)
        #expect(Duration.seconds(1 << 40).wireMilliseconds == .max)
    }
}
