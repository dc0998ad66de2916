extension OffsetCommitKey {
    /// Reads version 0 where group and topic are likely to be those of `last`: then they are shared with it, and
    /// nothing is decoded. Offsets are committed group by group, and a log of them is millions of keys.
    package init(reading r: inout ProtocolReader, after last: OffsetCommitKey) throws(DecodeError) {
        self.init()
        let position = r.position
        guard let group = try r.nullableString(false, expecting: last.group),
            let topic = try r.nullableString(false, expecting: last.topic)
        else { throw .nullNotAllowed(position: position) }
        self.group = group
        self.topic = topic
        self.partition = try r.integer()
    }
}
