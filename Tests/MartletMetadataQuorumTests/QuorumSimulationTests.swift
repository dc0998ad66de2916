import MartletLogModel
import MartletMetadataQuorum
import MartletTestSupport
import Testing

/// The whole protocol, seed by seed. `MARTLET_LONG=1` runs many more.
@Suite struct QuorumSimulationTests {
    private static let seedCount: UInt64 = Surroundings.isLong ? 20_000 : 300
    /// Seeds within which a removed rule must be noticed.
    private static let mutationSeedCount: UInt64 = 2_000

    @Test func `every invariant holds under faults and everything heals`() async {
        let parts: UInt64 = 2
        let outcomes = await withTaskGroup(of: (QuorumWorld.Counts, Int, Int, [String]).self) { group in
            for part in 0..<parts {
                group.addTask {
                    var counts = QuorumWorld.Counts()
                    var events = 0
                    var acknowledged = 0
                    var reports: [String] = []
                    var seed = part
                    while seed < Self.seedCount, reports.count < 3 {
                        let outcome = QuorumChaos.run(seed)
                        counts += outcome.counts
                        events += outcome.eventCount
                        acknowledged += outcome.acknowledged
                        if !outcome.problems.isEmpty { reports.append(outcome.report) }
                        seed += parts
                    }
                    return (counts, events, acknowledged, reports)
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        var counts = QuorumWorld.Counts()
        var events = 0
        var acknowledged = 0
        for (part, partEvents, partAcknowledged, reports) in outcomes {
            counts += part
            events += partEvents
            acknowledged += partAcknowledged
            for report in reports { Issue.record("\(report)") }
        }
        print(
            "quorum simulation: seeds 0..<\(Self.seedCount), \(events) events, \(acknowledged) acknowledged, \(counts)"
        )
        #expect(counts.elections > Int(Self.seedCount))
        #expect(counts.truncations > 10 && counts.snapshotInstalls > 10 && counts.membershipChanges > 50)
        #expect(acknowledged > 10 * Int(Self.seedCount))
    }

    @Test func `the same seed makes the same run`() {
        for seed: UInt64 in [3, 17] {
            let first = QuorumChaos.run(seed)
            let second = QuorumChaos.run(seed)
            #expect(first.eventCount == second.eventCount && first.acknowledged == second.acknowledged)
        }
    }

    @Test(arguments: SuspendedRules.metadataQuorum.map(\.name))
    func `a rule that is switched off is missed`(_ name: String) throws {
        let rule = try #require(SuspendedRules.metadataQuorum.first { $0.name == name }?.rule)
        for seed in 0..<Self.mutationSeedCount {
            let outcome = QuorumChaos.run(seed, suspended: rule)
            if let problem = outcome.problems.first {
                print("without '\(name)': seed \(seed): \(problem.prefix(160))")
                return
            }
        }
        Issue.record("\(Self.mutationSeedCount) seeds did not miss '\(name)'")
    }
}

private enum Surroundings {
    static let isLong = BuildProducts.isLong
}
