internal import MartletSimulatorKit
internal import MartletStorage

/// Draws faults and makes them happen, one after the other with quiet times between.
final class Faults {
    private let world: World
    private let broker: VirtualBroker
    private let random: SimulationRandom
    private(set) var counts: [String: Int] = [:]
    private var end: Int64 = 0

    init(_ world: World, _ broker: VirtualBroker) {
        self.world = world
        self.broker = broker
        random = world.stream("faults")
    }

    var total: Int { counts.values.reduce(0, +) }

    func begin(until end: Int64) {
        self.end = end
        next()
    }

    private func next() {
        world.scheduler.after(random.nanoseconds(5_000...60_000)) {
            guard self.world.now < self.end else { return }
            self.strike()
            self.next()
        }
    }

    private func count(_ kind: String) {
        counts[kind, default: 0] += 1
        world.trace.note("fault", kind)
    }

    private func strike() {
        guard broker.isRunning, !broker.isDoomed else { return }
        switch random.int(0..<100) {
        case 0..<22:
            count("kill")
            broker.crash(.process, afterOperations: random.int(0..<40))
            restartLater()
        case 22..<30:
            // Between decision, markers and completion of a transaction.
            world.commitFault = { [unowned self] in
                guard broker.isRunning, !broker.isDoomed, world.act == .play else { return }
                count("power at commit")
                broker.crash(.power(powerCut()), afterOperations: random.int(1..<12))
                restartLater()
            }
        case 30..<44:
            count("power")
            broker.crash(.power(powerCut()), afterOperations: random.int(0..<40))
            restartLater()
        case 44..<62:
            count("break")
            let all = random.chance(30)
            for connection in world.network.inOrder where all || random.chance(30) {
                connection.breakDown(delivering: random.chance(60))
            }
        case 62..<82:
            count("stall")
            let until = world.now + random.nanoseconds(500...20_000)
            for connection in world.network.inOrder where random.chance(35) { connection.stall(until: until) }
        case 82..<86:
            // The machine's clock is set, by up to an hour off its clients' (F25).
            count("clock")
            world.scheduler.wallClockOffset = Int64(random.int(-59 * 60_000..<59 * 60_000))
        case 86..<91:
            count("slow disk")
            broker.diskSlowness = Int64(random.int(5..<200))
            world.scheduler.after(random.nanoseconds(1_000...15_000)) { self.broker.diskSlowness = 1 }
        case 91..<96:
            count("full disk")
            let disk = broker.disk
            disk.setCapacity(disk.usedBytes + random.int(0..<4_000))
            world.scheduler.after(random.nanoseconds(2_000...20_000)) { self.broker.disk.setCapacity(SimulatedDisk.unlimited) }
        case _:
            // A failed flush is final for the directory: the machine is looked after and starts again without what
            // was not on the medium.
            count("failed flush")
            broker.disk.fail(.sync, .inputOutput, skipping: random.int(0..<5))
            world.scheduler.after(random.nanoseconds(1_000...6_000)) {
                self.broker.disk.clearFaults()
                self.broker.spare()
                self.broker.crash(.power(self.powerCut()), afterOperations: 0)
                self.restartLater()
            }
        }
    }

    /// What the disk has after the power came back: nothing unsynced, or of each file the writes up to some point,
    /// as file systems do that let a size wait for its data (numbers divisible by three, see `SimulatedDisk`). Sectors
    /// missing in the middle, with whole batches behind them, are damage to recovery: the partition stays offline
    /// until somebody looks at it, which is right and no end for a play.
    private func powerCut() -> UInt64 {
        random.chance(25) ? 0 : 3 * UInt64(random.int(1..<1_000_000_000))
    }

    private func restartLater() {
        world.scheduler.after(random.nanoseconds(200...8_000)) { self.restart() }
    }

    private func restart() {
        // It may take a while until the disk does the operation at which the process is to die.
        if broker.isDoomed { return restartLater() }
        if !broker.isRunning { broker.start() }
    }

    /// Whatever is wrong is put right.
    func heal() {
        end = 0
        world.commitFault = nil
        broker.spare()
        broker.diskSlowness = 1
        broker.disk.clearFaults()
        broker.disk.setCapacity(SimulatedDisk.unlimited)
    }
}
