import MartletStorage

extension SimulatedDisk {
    /// One change of a directory's entries; whole or not at all. A nil node removes the name.
    struct DirectoryChange {
        var assignments: [(name: String, node: Int?)]
    }

    struct Node {
        var isDirectory: Bool
        // Files.
        var content: [UInt8] = []
        /// Size on the medium.
        var durableSize = 0
        /// What the medium holds where `content` is newer: sectors as they were at the last sync. Kept instead of a
        /// second copy of the file, so that a sync costs what was written since the last one.
        var preimages: [Int: [UInt8]] = [:]
        /// Sizes the file had since the last sync, in order; empty when nothing changed.
        var sizes: [Int] = []
        /// Sectors written since the last sync.
        var dirtySectors: Set<Int> = []
        /// End of reserved blocks.
        var reserved = 0
        var modified: Int64 = 0
        // Directories.
        var entries: [String: Int] = [:]
        var durableEntries: [String: Int] = [:]
        var changes: [DirectoryChange] = []
    }

    struct State {
        static let rootID = 0
        var nodes: [Int: Node] = [0: Node(isDirectory: true)]
        var nextID = 1
        var capacity: Int
        var operationCount = 0
        var stopAt: Int?
        var faults: [Fault] = []
        var pretendsToFlush = false
        var locks: Set<Int> = []
        var trace: [(number: Int, operation: SimulatedOperation, path: String)] = []
        var time: Int64 = 0
        /// ``used``, until directories change.
        private var knownUsed: Int?

        /// Newest operations kept for a failing test's report.
        static let traceLimit = 20_000

        init(capacity: Int) { self.capacity = capacity }

        static func name(_ path: String) -> String {
            path.utf8.lastIndex(of: UInt8(ascii: "/")).map { String(path[path.utf8.index(after: $0)...]) } ?? path
        }

        func lookup(_ path: String) -> Int? {
            var id = Self.rootID
            var rest = path.utf8[...]
            while true {
                while rest.first == UInt8(ascii: "/") { rest.removeFirst() }
                if rest.isEmpty { return id }
                let end = rest.firstIndex(of: UInt8(ascii: "/")) ?? rest.endIndex
                guard let next = nodes[id]?.entries[String(Substring(rest[..<end]))] else { return nil }
                id = next
                rest = rest[end...]
            }
        }

        func isDirectory(_ id: Int) -> Bool { nodes[id]?.isDirectory ?? false }

        func entries(of id: Int) -> [String: Int] { nodes[id]?.entries ?? [:] }

        var isStopped: Bool { stopAt.map { operationCount >= $0 } ?? false }

        mutating func note(_ operation: SimulatedOperation, _ path: String) {
            if trace.count < Self.traceLimit { trace.append((operationCount, operation, path)) }
        }

        mutating func nextFault(_ operation: SimulatedOperation) -> DiskError.Kind? {
            for index in faults.indices
            where faults[index].operation == operation || faults[index].operation == .any {
                if faults[index].skipping > 0 {
                    faults[index].skipping -= 1
                } else if faults[index].count > 0 {
                    faults[index].count -= 1
                    return faults[index].kind
                }
            }
            return nil
        }

        mutating func makeFile() -> Int {
            let id = nextID
            nextID += 1
            nodes[id] = Node(isDirectory: false)
            nodes[id]?.modified = time
            return id
        }

        mutating func makeDirectory() -> Int {
            let id = nextID
            nextID += 1
            nodes[id] = Node(isDirectory: true)
            return id
        }

        mutating func change(
            _ directory: String, _ assignments: [(String, Int?)], _ path: String
        ) throws(DiskError) {
            guard let id = lookup(directory), isDirectory(id) else {
                throw DiskError(.notFound, operation: "open", path: path)
            }
            for (name, node) in assignments { nodes[id]?.entries[name] = node }
            knownUsed = nil
            nodes[id]?.changes.append(DirectoryChange(assignments: assignments.map { (name: $0.0, node: $0.1) }))
        }

        mutating func syncDirectory(_ id: Int) {
            let entries = entries(of: id)
            nodes[id]?.durableEntries = entries
            nodes[id]?.changes = []
        }

        /// Bytes in use, reserved blocks included.
        var used: Int {
            mutating get {
                if let knownUsed { return knownUsed }
                let total = countUsed()
                knownUsed = total
                return total
            }
        }

        private func countUsed() -> Int {
            var total = 0
            var seen: Set<Int> = []
            var pending = [Self.rootID]
            while let id = pending.popLast() {
                guard seen.insert(id).inserted, let node = nodes[id] else { continue }
                total += max(node.content.count, node.reserved)
                pending.append(contentsOf: node.entries.values)
            }
            return total
        }

        /// Writes what there is room for; returns how much that was.
        mutating func write(_ id: Int, _ bytes: [UInt8], at offset: Int) -> Int {
            guard var node = nodes[id] else { return 0 }
            nodes[id] = nil
            let have = node.space
            defer {
                grew(by: node.space - have)
                nodes[id] = node
            }
            var count = bytes.count
            if offset + count > have, capacity < SimulatedDisk.unlimited {
                // Space is only looked at when a file grows and there is a limit.
                if knownUsed == nil {
                    nodes[id] = node
                    knownUsed = countUsed()
                    nodes[id] = nil
                }
                let free = max(0, capacity - used)
                count = min(count, max(0, have + free - offset))
            }
            if count == 0 { return 0 }
            node.keep(from: min(offset, node.content.count), to: offset + count)
            if node.content.count < offset + count {
                node.content.append(contentsOf: repeatElement(0, count: offset + count - node.content.count))
            }
            node.content.replaceSubrange(offset..<offset + count, with: bytes[..<count])
            node.sizes.append(node.content.count)
            node.modified = time
            return count
        }

        mutating func truncate(_ id: Int, to size: Int) {
            guard var node = nodes[id] else { return }
            nodes[id] = nil
            let had = node.space
            defer {
                grew(by: node.space - had)
                nodes[id] = node
            }
            node.reserved = min(node.reserved, size)
            if size == node.content.count { return }
            node.keep(from: min(size, node.content.count), to: max(size, node.content.count))
            if size < node.content.count {
                node.content.removeLast(node.content.count - size)
            } else {
                node.content.append(contentsOf: repeatElement(0, count: size - node.content.count))
            }
            node.sizes.append(size)
        }

        mutating func reserve(_ id: Int, end: Int) -> Bool {
            let have = max(nodes[id]?.content.count ?? 0, nodes[id]?.reserved ?? 0)
            if end > have, end - have > capacity - used { return false }
            let reserved = nodes[id]?.reserved ?? 0
            nodes[id]?.reserved = max(end, reserved)
            grew(by: max(0, end - have))
            return true
        }

        private mutating func grew(by count: Int) {
            if let known = knownUsed { knownUsed = known + count }
        }

        mutating func sync(_ id: Int) {
            guard var node = nodes[id] else { return }
            nodes[id] = nil
            for sector in node.dirtySectors { node.preimages[sector] = nil }
            node.durableSize = node.content.count
            node.sizes = []
            node.dirtySectors = []
            nodes[id] = node
        }

        /// A failed flush: pages look clean although the medium does not have them.
        mutating func forgetDirt(_ id: Int) {
            nodes[id]?.dirtySectors = []
            nodes[id]?.sizes = []
        }

        func collect(_ prefix: String, _ id: Int, into found: inout [String]) {
            for (name, child) in entries(of: id) {
                let path = prefix + "/" + name
                if isDirectory(child) { collect(path, child, into: &found) } else { found.append(path) }
            }
        }

        // MARK: Crash

        func crashImage(mode: CrashMode, using generator: inout SplitMix64) -> State {
            var image = State(capacity: capacity)
            image.nextID = nextID
            image.time = time
            image.nodes = [:]
            // Sorted, so that a seed means the same image in every process; what nobody can reach is gone.
            for id in nodes.keys.sorted() {
                guard let node = nodes[id] else { continue }
                image.nodes[id] =
                    node.isDirectory
                    ? Self.survivingDirectory(node, mode: mode, using: &generator)
                    : Self.survivingFile(node, mode: mode, using: &generator)
            }
            let reachable = image.reachable()
            image.nodes = image.nodes.filter { reachable.contains($0.key) }
            return image
        }

        private func reachable() -> Set<Int> {
            var seen: Set<Int> = []
            var pending = [Self.rootID]
            while let id = pending.popLast() {
                guard seen.insert(id).inserted, let node = nodes[id] else { continue }
                pending.append(contentsOf: node.entries.values)
            }
            return seen
        }

        private static func survivingDirectory(
            _ node: Node, mode: CrashMode, using generator: inout SplitMix64
        ) -> Node {
            var survivor = Node(isDirectory: true)
            var entries = node.durableEntries
            let prefix = Int.random(in: 0...node.changes.count, using: &generator)
            for (index, change) in node.changes.enumerated() {
                let survives: Bool
                switch mode {
                case .loseAll: survives = false
                case .keepAll: survives = true
                case .prefix: survives = index < prefix
                case .subset: survives = Bool.random(using: &generator)
                }
                if survives { for (name, child) in change.assignments { entries[name] = child } }
            }
            survivor.entries = entries
            survivor.durableEntries = entries
            return survivor
        }

        private static func survivingFile(
            _ node: Node, mode: CrashMode, using generator: inout SplitMix64
        ) -> Node {
            var survivor = Node(isDirectory: false)
            survivor.modified = node.modified
            switch mode {
            case .keepAll:
                survivor.content = node.content
            case .loseAll:
                survivor.content = node.durable
            case .subset, .prefix:
                let size = ([node.durableSize] + node.sizes).randomElement(using: &generator) ?? 0
                var content = node.durable
                if size < content.count {
                    content.removeLast(content.count - size)
                } else {
                    content.append(contentsOf: repeatElement(0, count: size - content.count))
                }
                let sectors = node.dirtySectors.sorted()
                let prefix = Int.random(in: 0...sectors.count, using: &generator)
                // Half of the time most sectors survive: single holes are the interesting case.
                let chance = Bool.random(using: &generator) ? 90 : 50
                for (index, sector) in sectors.enumerated() {
                    let survives: Bool
                    if case .prefix = mode {
                        survives = index < prefix
                    } else {
                        survives = Int.random(in: 0..<100, using: &generator) < chance
                    }
                    let start = sector * SimulatedDisk.sectorBytes
                    let end = min(start + SimulatedDisk.sectorBytes, content.count, node.content.count)
                    guard survives, start < end else { continue }
                    content.replaceSubrange(start..<end, with: node.content[start..<end])
                }
                survivor.content = content
            }
            survivor.durableSize = survivor.content.count
            return survivor
        }
    }
}

extension SimulatedDisk.Node {
    private static var sectorBytes: Int { SimulatedDisk.sectorBytes }

    /// What the file takes on the disk.
    var space: Int { max(content.count, reserved) }

    /// Keeps what the medium holds of a range that is about to change, and marks its sectors dirty.
    mutating func keep(from start: Int, to end: Int) {
        guard start < end else { return }
        for sector in start / Self.sectorBytes...(end - 1) / Self.sectorBytes {
            dirtySectors.insert(sector)
            guard preimages[sector] == nil else { continue }
            let first = sector * Self.sectorBytes
            let last = min(first + Self.sectorBytes, content.count)
            preimages[sector] = first < last ? Array(content[first..<last]) : []
        }
    }

    /// What the medium certainly holds.
    var durable: [UInt8] {
        var bytes = content
        if durableSize < bytes.count {
            bytes.removeLast(bytes.count - durableSize)
        } else {
            bytes.append(contentsOf: repeatElement(0, count: durableSize - bytes.count))
        }
        for (sector, before) in preimages {
            let first = sector * Self.sectorBytes
            let end = min(first + Self.sectorBytes, durableSize)
            guard first < end else { continue }
            let known = before.prefix(end - first)
            bytes.replaceSubrange(first..<end, with: known + repeatElement(0, count: end - first - known.count))
        }
        return bytes
    }
}
