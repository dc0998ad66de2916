/// Compares two revisions of the schemas. Messages that are out in the world, or records on a disk, must
/// stay readable, so of a version that the older revision knew nothing may change on the wire.
package enum EvolutionCheck {
    /// One sentence per forbidden change; empty if `newer` may follow `older`.
    package static func problems(from older: [Message], to newer: [Message]) -> [String] {
        var problems: [String] = []
        for old in older {
            guard let new = newer.first(where: { $0.name == old.name }) else {
                problems.append("\(old.name): removed")
                continue
            }
            compare(old, new, &problems)
        }
        return problems
    }

    private static func compare(_ old: Message, _ new: Message, _ problems: inout [String]) {
        if old.kind != new.kind {
            problems.append("\(old.name): kind changed from \(old.kind) to \(new.kind)")
        }
        if old.key != new.key { problems.append("\(old.name): key changed") }
        if new.versions.upper < old.versions.upper {
            problems.append("\(old.name): version \(old.versions.upper) removed")
        }
        // Old requests may be given up (KIP-896), but what is on disks must stay readable.
        let persisted = old.kind != .request && old.kind != .response
        if persisted, new.versions.lower > old.versions.lower {
            problems.append(
                "\(old.name): version \(old.versions.lower) removed, but records of it are on disks")
        }
        guard let common = old.versions.intersection(new.versions) else {
            problems.append("\(old.name): no version in common")
            return
        }
        for version in common.lower...common.upper {
            let oldFlexible = old.flexible.map { version >= $0 } ?? false
            let newFlexible = new.flexible.map { version >= $0 } ?? false
            if oldFlexible != newFlexible {
                problems.append("\(old.name) version \(version): flexible changed")
                continue
            }
            compare(old, old.fields, new, new.fields, version, old.name, &problems)
        }
    }

    private static func compare(
        _ oldMessage: Message, _ old: [Field], _ newMessage: Message, _ new: [Field], _ version: Int,
        _ path: String, _ problems: inout [String]
    ) {
        func present(_ fields: [Field], tagged: Bool) -> [Field] {
            fields.filter { ($0.tag != nil) == tagged && $0.versions.contains(version) }
        }
        let oldPlain = present(old, tagged: false)
        let newPlain = present(new, tagged: false)
        if oldPlain.map(\.name) != newPlain.map(\.name) {
            problems.append(
                "\(path) version \(version): fields changed from "
                    + "\(oldPlain.map(\.name).joined(separator: ", ")) to "
                    + newPlain.map(\.name).joined(separator: ", "))
            return
        }
        for (before, after) in zip(oldPlain, newPlain) {
            compare(oldMessage, before, newMessage, after, version, path, &problems)
        }
        // Tagged fields may be added to a published version, never removed or renumbered.
        for before in present(old, tagged: true) {
            guard let after = present(new, tagged: true).first(where: { $0.name == before.name }) else {
                problems.append("\(path).\(before.name) version \(version): tagged field removed")
                continue
            }
            if after.tag != before.tag {
                problems.append("\(path).\(before.name) version \(version): tag changed")
            }
            compare(oldMessage, before, newMessage, after, version, path, &problems)
        }
        for after in present(new, tagged: true)
        where !present(old, tagged: true).contains(where: { $0.name == after.name }) {
            let reused = present(old, tagged: true).contains { $0.tag == after.tag }
            if reused {
                problems.append("\(path).\(after.name) version \(version): tag of another field reused")
            }
        }
    }

    private static func compare(
        _ oldMessage: Message, _ before: Field, _ newMessage: Message, _ after: Field, _ version: Int,
        _ path: String, _ problems: inout [String]
    ) {
        let name = "\(path).\(before.name)"
        if before.type != after.type {
            problems.append("\(name) version \(version): type changed from \(before.type) to \(after.type)")
            return
        }
        let wasNullable = before.nullable?.contains(version) ?? false
        let isNullable = after.nullable?.contains(version) ?? false
        if wasNullable && !isNullable {
            problems.append("\(name) version \(version): null no longer allowed")
        } else if !wasNullable && isNullable {
            problems.append("\(name) version \(version): null newly allowed, which older readers refuse")
        }
        if before.defaultValue != after.defaultValue, before.tag != nil {
            problems.append("\(name) version \(version): default changed, but absent means the default")
        }
        guard let structure = SchemaParser.structureName(before.type),
            let oldStructure = oldMessage.structure(structure),
            let newStructure = newMessage.structure(structure)
        else { return }
        compare(
            oldMessage, oldStructure.fields, newMessage, newStructure.fields, version, name, &problems)
    }
}
