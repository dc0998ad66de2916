import MartletChecker
import MartletLogModel
import MartletSimulation
import Testing

/// A broker, its disk, its network and a dozen clients out of one seed.
@Suite struct SimulationTests {
    /// Seeds that `Tools/test` runs; `--long` runs thousands with the release build.
    private static let seeds: Range<UInt64> = 0..<4

    @Test(.timeLimit(.minutes(5)), arguments: seeds)
    func `a seed is clean, and did enough to prove something`(seed: UInt64) async {
        let result = await Simulation.run(SimulationOptions(seed: seed))
        #expect(result.problems.isEmpty, "simulator trace \(seed)")
        #expect(result.counts.acknowledgedOperations >= 1_000)
        #expect(result.faultCount >= 5)
        #expect(result.virtualSeconds >= 600)
        #expect(result.counts.committedTransactions > 100)
        #expect(result.history.isComplete)
    }

    @Test(.timeLimit(.minutes(5))) func `a seed gives the same trace each time`() async {
        var options = SimulationOptions(seed: 7)
        options.minutes = 3
        options.traces = true
        let first = await Simulation.run(options)
        let second = await Simulation.run(options)
        #expect(first.traceLineCount > 1_000)
        #expect(first.traceHash == second.traceHash)
        #expect(first.traceLineCount == second.traceLineCount)
        #expect(first.history == second.history)
        options.seed = 8
        let other = await Simulation.run(options)
        #expect(other.traceHash != first.traceHash)
    }

    @Test(.timeLimit(.minutes(5))) func `without the flush before the acknowledgement a power cut is noticed`() async {
        await expectFound(.flushBeforeAcknowledgement)
    }

    @Test(.timeLimit(.minutes(5))) func `without the last stable offset open transactions are noticed`() async {
        await expectFound(.lastStableOffset)
    }

    @Test(.timeLimit(.minutes(5))) func `without verification a late Produce of the first protocol is noticed`() async {
        await expectFound(.transactionVerification)
    }

    @Test(.timeLimit(.minutes(5))) func `without an epoch for each transaction a late EndTxn is noticed`() async {
        await expectFound(.epochBumpOnEnd)
    }

    @Test(.timeLimit(.minutes(5))) func `without the end of a lock a late acknowledgement is noticed`() async {
        await expectFound(.shareLockEnd)
    }

    @Test(.timeLimit(.minutes(5)), arguments: UInt64(0)..<3)
    func `flipped bits are refused, and all else is there as it was`(seed: UInt64) async {
        var options = SimulationOptions(seed: seed)
        options.minutes = 2
        options.rots = true
        let result = await Simulation.run(options)
        #expect(result.problems.isEmpty, "simulator trace \(seed) --minutes 2 --rot")
        #expect(result.faults["bit flip", default: 0] > 0)
    }

    private func expectFound(_ rule: SuspendedRules) async {
        for seed: UInt64 in 0..<10 {
            var options = SimulationOptions(seed: seed)
            options.rules = rule
            let result = await Simulation.run(options)
            if result.failed {
                #expect(!result.problems.isEmpty)
                return
            }
        }
        Issue.record("ten seeds did not notice it")
    }
}
