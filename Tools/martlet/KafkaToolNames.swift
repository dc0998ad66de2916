/// Kafka's own tool names and verbs as aliases, for hands that know them: `martlet kafka-topics --create
/// --topic T` means `martlet topic create --topic T`.
enum KafkaToolNames {
    private static let tools: [String: (noun: [String], verbs: [String: String])] = [
        "kafka-topics": (
            ["topic"],
            [
                "--create": "create", "--list": "list", "--describe": "describe", "--delete": "delete",
                "--alter": "alter",
            ]
        ),
        "kafka-consumer-groups": (
            ["group"],
            [
                "--list": "list", "--describe": "describe", "--delete": "delete",
                "--reset-offsets": "reset-offsets",
            ]
        ),
        "kafka-transactions": (
            ["txn"],
            [
                "list": "list", "describe": "describe", "describe-producers": "producers", "abort": "abort",
                "find-hanging": "find-hanging",
            ]
        ),
        "kafka-configs": (["config"], ["--describe": "describe", "--alter": "alter"]),
        "kafka-console-producer": (["produce"], [:]),
        "kafka-console-consumer": (["consume"], [:]),
        "kafka-cluster": (["cluster", "describe"], [:]),
        "kafka-dump-log": (["log", "dump"], [:]),
        "kafka-producer-perf-test": (["bench", "produce"], [:]),
        "kafka-consumer-perf-test": (["bench", "consume"], [:]),
    ]

    /// The arguments with a leading Kafka tool name replaced by our noun, and its verb flag by our verb.
    static func rewrite(_ arguments: [String]) -> [String] {
        guard var name = arguments.first else { return arguments }
        if name.hasSuffix(".sh") { name.removeLast(3) }
        guard let tool = tools[name] else { return arguments }
        var rest = Array(arguments.dropFirst())
        var verb: [String] = []
        if let index = rest.firstIndex(where: { tool.verbs[$0] != nil }), let word = tool.verbs[rest[index]] {
            verb = [word]
            rest.remove(at: index)
        }
        return tool.noun + verb + rest
    }
}
