internal import MartletChecker
internal import MartletSimulatorKit

/// Flips bits in closed segments, where nobody has looked for a while, and reads everything again (F13): what is
/// damaged must be refused, by the broker or by its checksum, and everything else must be there as it was (I4).
// SAFETY: confined to the thread that runs the simulation.
final class RotReader: Client, @unchecked Sendable {
    private let reader: FetchingReader
    private let places: [Place]
    private(set) var damaged: Set<Place> = []
    private var flipped: Set<Place> = []
    private(set) var flipCount = 0

    init(_ world: World, process: Int, places: [Place]) {
        self.places = places
        let random = world.stream("rot \(process)")
        let link = ClientLink(world, "rot-\(process)")
        reader = FetchingReader(world, link, random)
        super.init(world, process: process, link: link, random: random)
        reader.damaged = { [weak self] place in
            self?.damaged.insert(place)
            self?.reader.positions[place] = nil
        }
    }

    override var endsWithThePlay: Bool { false }

    var isDone: Bool { reader.atEnd.union(damaged).isSuperset(of: places) }

    /// Where it has not come to an end, and damage where nothing was flipped.
    var problems: [String] {
        places.filter { !reader.atEnd.contains($0) && !damaged.contains($0) }.map { "\($0) cannot be read to its end" }
            + damaged.subtracting(flipped).sorted().map { "\($0) is refused, and nothing was flipped there" }
    }

    /// Flips some bits of closed segments and of their indexes.
    func strike(_ disk: SimulatedDisk) {
        var files: [(place: Place, path: String)] = []
        for place in places {
            let own = disk.files.filter { $0.hasPrefix("/data/\(place)/") }
            guard let active = own.filter({ $0.hasSuffix(".log") }).max() else { continue }
            let base = active.dropLast(".log".count)
            files += own.filter { path in
                !path.hasPrefix(base) && [".log", ".index", ".timeindex"].contains { path.hasSuffix($0) }
            }.map { (place, $0) }
        }
        guard !files.isEmpty else { return }
        let wanted = random.int(1..<4)
        for _ in 0..<20 where flipCount < wanted {
            let file = random.pick(files)
            guard let count = disk.content(file.path)?.count, count > 0 else { continue }
            let byte = random.int(0..<count)
            if file.path.hasSuffix(".log"), Self.isBaseOffset(byte, disk.content(file.path) ?? []) { continue }
            let bit = random.int(0..<8)
            disk.flip(file.path, byte: byte, bit: bit)
            world.trace.note("fault", "bit \(bit) of byte \(byte) of \(file.path)")
            flipCount += 1
            if file.path.hasSuffix(".log") { flipped.insert(file.place) }
        }
    }

    /// A batch's base offset lies outside of its checksum (the format is Kafka's), and a broker that sends regions of
    /// files does not see it: only a scrub finds out.
    private static func isBaseOffset(_ byte: Int, _ content: [UInt8]) -> Bool {
        var start = 0
        while start + 12 <= content.count {
            let length = content[start + 8..<start + 12].reduce(0) { $0 << 8 | Int($1) }
            if byte < start + 12 + length { return byte < start + 8 }
            start += 12 + length
        }
        return false
    }

    override func run() async {
        while world.act < .rot { await pause(5_000...10_000) }
        for place in places { reader.positions[place] = 0 }
        world.record(process, since: world.now, .succeeded, places.map { .assign($0, from: 0) })
        while world.act == .rot, !isDone {
            let start = world.now
            let records = await reader.poll()
            if !records.isEmpty { world.record(process, since: start, .succeeded, [.poll(records)]) }
            await pause(20...100)
        }
    }
}
