import NIOCore

/// The 32-bit murmur2 hash with the seed that Kafka's Java producer uses, so that both pick the same partition
/// for a key. Each client library that shares topics with Java must agree on these constants.
func murmur2(_ key: ByteBuffer) -> Int32 {
    let bytes = key.readableBytesSpan
    let count = bytes.byteCount
    let multiplier: UInt32 = 0x5bd1_e995
    var hash: UInt32 = 0x9747_b28c ^ UInt32(truncatingIfNeeded: count)
    func byte(_ index: Int) -> UInt32 {
        // SAFETY: a load of one byte needs no alignment, every bit pattern is a byte, the index is checked.
        unsafe UInt32(bytes.unsafeLoad(fromByteOffset: index, as: UInt8.self))
    }
    var position = 0
    while position + 4 <= count {
        var word =
            byte(position) | byte(position + 1) << 8 | byte(position + 2) << 16 | byte(position + 3) << 24
        word = word &* multiplier
        word ^= word >> 24
        word = word &* multiplier
        hash = hash &* multiplier
        hash ^= word
        position += 4
    }
    let rest = count - position
    if rest >= 3 { hash ^= byte(position + 2) << 16 }
    if rest >= 2 { hash ^= byte(position + 1) << 8 }
    if rest >= 1 {
        hash ^= byte(position)
        hash = hash &* multiplier
    }
    hash ^= hash >> 13
    hash = hash &* multiplier
    hash ^= hash >> 15
    return Int32(bitPattern: hash)
}

/// The partition of a key by Java's rule: the hash without its sign bit, modulo the number of partitions.
func keyPartition(_ key: ByteBuffer, partitionCount: Int) -> Int {
    Int(murmur2(key) & 0x7fff_ffff) % partitionCount
}
