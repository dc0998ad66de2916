internal import MartletSimulatorKit

/// Random numbers of one purpose. Every purpose has a stream of its own, derived from the seed and a name, so
/// that a change in one part of the simulation does not change what the others draw.
// SAFETY: confined to the thread that runs the simulation.
package final class SimulationRandom: RandomNumberGenerator, @unchecked Sendable {
    private var generator: SplitMix64

    package init(seed: UInt64, purpose: String) {
        // FNV-1a of the purpose.
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in purpose.utf8 { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
        var mixer = SplitMix64(seed: seed)
        generator = SplitMix64(seed: mixer.next() ^ hash)
    }

    package func next() -> UInt64 { generator.next() }

    func chance(_ percent: Int) -> Bool { int(0..<100) < percent }

    func int(_ range: Range<Int>) -> Int {
        var source = self
        return Int.random(in: range, using: &source)
    }

    func nanoseconds(_ milliseconds: ClosedRange<Int64>) -> Int64 {
        var source = self
        return Int64.random(in: milliseconds.lowerBound * 1_000_000...milliseconds.upperBound * 1_000_000, using: &source)
    }

    func pick<T>(_ items: [T]) -> T { items[int(0..<items.count)] }
}
