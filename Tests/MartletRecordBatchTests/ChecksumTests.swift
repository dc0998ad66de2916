import CMartletChecksum
import MartletRecordBatch
import NIOCore
import Testing

@Suite struct ChecksumTests {
    /// RFC 3720 (iSCSI), appendix B.4, and the customary check value of nine digits.
    static let vectors: [([UInt8], UInt32)] = [
        (Array("123456789".utf8), 0xE306_9283),
        ([UInt8](repeating: 0x00, count: 32), 0x8A91_36AA),
        ([UInt8](repeating: 0xFF, count: 32), 0x62A8_AB43),
        (Array(0...31), 0x46DD_794E),
        (Array((0...31).reversed()), 0x113F_DB5C),
        (
            [
                0x01, 0xC0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                0x00,
                0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00,
                0x18,
                0x28, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                0x00,
            ], 0xD996_3A56
        ),
        ([], 0),
    ]

    @Test func `the published vectors come out of the instruction and of the table`() {
        for (bytes, checksum) in Self.vectors {
            bytes.withUnsafeBytes { raw in
                #expect(crc32c(raw) == checksum)
                #expect(martlet_crc32c_table(0, raw.baseAddress, raw.count) == checksum)
            }
        }
    }

    @Test func `instruction and table agree at every length and alignment`() {
        var random = Randomness(seed: 1)
        let bytes = randomBytes(40_000, using: &random)
        bytes.withUnsafeReadableBytes { raw in
            // Around the stripe sizes (3 x 256 and 3 x 4096) and everything short.
            for length in Array(0...1_600) + Array(12_200...12_400) + [24_576, 25_344, 39_990] {
                let part = UnsafeRawBufferPointer(rebasing: raw[(length % 9)..<(length % 9) + length])
                #expect(crc32c(part, continuing: 77) == martlet_crc32c_table(77, part.baseAddress, length))
            }
        }
    }

    @Test func `a checksum continued piece by piece equals the one over the whole`() {
        var random = Randomness(seed: 2)
        let bytes = randomBytes(30_000, using: &random)
        let whole = crc32c(bytes)
        for _ in 0..<200 {
            let cut = Int.random(in: 0...bytes.readableBytes, using: &random)
            let first = crc32c(bytes, range: 0..<cut)
            #expect(crc32c(bytes, range: cut..<bytes.readableBytes, continuing: first) == whole)
        }
    }

    @Test func `this processor's implementation has a name`() {
        let name = String(cString: martlet_crc32c_implementation())
        #expect(["sse4.2+pclmul", "armv8-crc", "table"].contains(name))
    }
}
