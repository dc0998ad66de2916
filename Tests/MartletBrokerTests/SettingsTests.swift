import MartletBroker
import Testing

@Suite struct `Broker settings` {
    @Test func `settings that contradict each other are refused before anything starts`() throws {
        for (values, named) in [
            (["group.share.session.timeout.ms": "1000"], "group.share.session.timeout.ms"),
            (["group.share.min.record.lock.duration.ms": "30000", "group.share.record.lock.duration.ms": "20000"],
                "group.share.min.record.lock.duration.ms"),
            (["group.share.max.delivery.count.limit": "5", "group.share.delivery.count.limit": "9"],
                "group.share.delivery.count.limit"),
            (["group.min.session.timeout.ms": "2000000"], "group.min.session.timeout.ms"),
        ] {
            var settings = BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: "/nowhere")
            for (key, value) in values.sorted(by: { $0.key < $1.key }) { try settings.set(key, value, origin: "test") }
            let error = #expect(throws: SettingsError.self) { try settings.check() }
            #expect(error?.key == named)
        }
        try BrokerSettings(listen: .init(host: "127.0.0.1", port: 0), dataDirectory: "/nowhere").check()
    }
}
