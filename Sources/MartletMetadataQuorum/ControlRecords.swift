import MartletKafkaProtocol
package import MartletLogModel
import MartletRecordBatch
package import NIOCore

/// What the metadata log says about itself, in control batches.
package enum ControlRecord: Hashable, Sendable {
    /// First record of each epoch (KIP-595).
    case leaderChange(LeaderChange)
    /// First and last record of a snapshot (KIP-630).
    case snapshotHeader(lastTimestamp: Timestamp)
    case snapshotFooter
    /// Level of `kraft.version`, and the voters (KIP-853).
    case version(Int16)
    case voters(VoterSet)
    /// Of another type, which a reader skips.
    case other(type: Int16)
}

package struct LeaderChange: Hashable, Sendable {
    package var leader: BrokerID
    package var voters: [ReplicaKey]
    package var grantingVoters: [ReplicaKey]

    package init(leader: BrokerID, voters: [ReplicaKey], grantingVoters: [ReplicaKey]) {
        self.leader = leader
        self.voters = voters
        self.grantingVoters = grantingVoters
    }
}

/// Why bytes are no batch of the metadata log. From a peer: the answer is dropped; from disk: the node does not start.
package struct ControlBatchError: Error, CustomStringConvertible {
    package var description: String
}

/// Control batches as bytes, in Kafka's layouts, and the way from bytes to ``LogBatch``.
package enum ControlBatch {
    /// Numbers of the record types in the key of a control record.
    private enum RecordType {
        static let leaderChange: Int16 = 2
        static let snapshotHeader: Int16 = 3
        static let snapshotFooter: Int16 = 4
        static let version: Int16 = 5
        static let voters: Int16 = 6
    }

    /// The bytes of a batch whose records are all control records. `.other` cannot be written.
    package static func encode(
        _ records: [ControlRecord], at baseOffset: Offset, epoch: LeaderEpoch, timestamp: Timestamp
    ) throws -> ByteBuffer {
        var builder = RecordBatchBuilder(capacity: 256)
        for record in records {
            let (type, value) = try encode(record)
            var key = ByteBuffer()
            key.writeInteger(Int16(0))
            key.writeInteger(type)
            try builder.append(key: key, value: value, timestamp: timestamp.rawValue)
        }
        var options = RecordBatchBuilder.Options()
        options.isControl = true
        options.baseOffset = baseOffset.rawValue
        options.partitionLeaderEpoch = epoch.rawValue
        return try builder.build(options)
    }

    /// Cuts fetched or stored bytes into batches. A batch that is cut short at the end is left out, as a fetch may end
    /// in the middle of one. Checksums are checked: a damaged batch ends the list with an error.
    package static func split(_ bytes: ByteBuffer) throws -> [LogBatch] {
        var rest = bytes
        var batches: [LogBatch] = []
        while rest.readableBytes >= RecordBatchHeader.byteCount {
            let header = try RecordBatchHeader(reading: rest)
            guard let batch = rest.readSlice(length: header.totalByteCount) else { break }
            _ = try RecordBatchValidator.checkHeader(batch, limits: .stored)
            let (end, overflow) = header.lastOffset.addingReportingOverflow(1)
            guard header.baseOffset >= 0, !overflow, end > header.baseOffset else {
                throw ControlBatchError(
                    description: "a batch spans \(header.baseOffset)...\(header.lastOffset)")
            }
            batches.append(
                LogBatch(
                    baseOffset: Offset(header.baseOffset), endOffset: Offset(end),
                    epoch: LeaderEpoch(header.partitionLeaderEpoch),
                    controlRecords: header.isControl ? try decode(batch) : [], bytes: batch))
        }
        return batches
    }

    /// The records of a control batch.
    package static func decode(_ batch: ByteBuffer) throws -> [ControlRecord] {
        var records: [ControlRecord] = []
        var iterator = try RecordIterator(batch)
        while let view = try iterator.next() {
            guard var key = view.key, let version = key.readInteger(as: Int16.self), version >= 0,
                let type = key.readInteger(as: Int16.self), let value = view.value
            else { throw ControlBatchError(description: "a control record has no type or no value") }
            records.append(try decode(type, value))
        }
        return records
    }

    private static func encode(_ record: ControlRecord) throws -> (type: Int16, value: ByteBuffer) {
        func bytes(_ message: some KafkaMessage, version: Int16 = 0) throws -> ByteBuffer {
            var writer = ProtocolWriter()
            try message.encode(into: &writer, version: version)
            return writer.buffer
        }
        switch record {
        case .leaderChange(let change):
            var message = LeaderChangeMessage()
            message.leaderID = change.leader.rawValue
            // The second version has directory ids; without any, the first is what older readers know.
            let hasDirectories = (change.voters + change.grantingVoters).contains { $0.directoryID != nil }
            message.version = hasDirectories ? 1 : 0
            message.voters = change.voters.map(LeaderChangeMessage.Voter.init)
            message.grantingVoters = change.grantingVoters.map(LeaderChangeMessage.Voter.init)
            return (RecordType.leaderChange, try bytes(message, version: message.version))
        case .snapshotHeader(let timestamp):
            var message = SnapshotHeaderRecord()
            message.lastContainedLogTimestamp = timestamp.rawValue
            return (RecordType.snapshotHeader, try bytes(message))
        case .snapshotFooter: return (RecordType.snapshotFooter, try bytes(SnapshotFooterRecord()))
        case .version(let level):
            var message = KRaftVersionRecord()
            message.kRaftVersion = level
            return (RecordType.version, try bytes(message))
        case .voters(let set):
            var message = VotersRecord()
            message.voters = set.voters.map(VotersRecord.Voter.init)
            return (RecordType.voters, try bytes(message))
        case .other(let type):
            throw ControlBatchError(description: "control records of type \(type) are not written")
        }
    }

    private static func decode(_ type: Int16, _ value: ByteBuffer) throws -> ControlRecord {
        func message<Message: KafkaMessage>(_: Message.Type, _ version: Int16? = nil) throws -> Message {
            // Each of these values begins with its own version.
            var peek = value
            guard let own = peek.readInteger(as: Int16.self) else {
                throw ControlBatchError(description: "a control record of type \(type) is empty")
            }
            // Later versions only add what older readers may skip.
            let known = min(max(own, Message.versions.lowerBound), Message.versions.upperBound)
            var reader = ProtocolReader(value)
            return try Message(reading: &reader, version: known)
        }
        switch type {
        case RecordType.leaderChange:
            let change = try message(LeaderChangeMessage.self)
            return .leaderChange(
                LeaderChange(
                    leader: BrokerID(change.leaderID), voters: change.voters.map(\.key),
                    grantingVoters: change.grantingVoters.map(\.key)))
        case RecordType.snapshotHeader:
            let header = try message(SnapshotHeaderRecord.self)
            return .snapshotHeader(lastTimestamp: Timestamp(milliseconds: header.lastContainedLogTimestamp))
        case RecordType.snapshotFooter: return .snapshotFooter
        case RecordType.version: return .version(try message(KRaftVersionRecord.self).kRaftVersion)
        case RecordType.voters:
            let record = try message(VotersRecord.self)
            guard !record.voters.isEmpty, record.voters.count <= QuorumLimits.voterLimit else {
                throw ControlBatchError(description: "a voters record names \(record.voters.count) voters")
            }
            return .voters(VoterSet(record.voters.map(\.voter)))
        case _: return .other(type: type)
        }
    }
}

// MARK: Translation of records; the zero id of the wire ends here.

extension ReplicaKey {
    package init(wireID: Int32, wireDirectory: UniversalID) {
        self.init(BrokerID(wireID), wireDirectory == .zero ? nil : wireDirectory)
    }

    package var wireDirectory: UniversalID { directoryID ?? .zero }
}

extension LeaderChangeMessage.Voter {
    init(_ key: ReplicaKey) {
        self.init()
        voterID = key.id.rawValue
        voterDirectoryID = key.wireDirectory
    }

    var key: ReplicaKey { ReplicaKey(wireID: voterID, wireDirectory: voterDirectoryID) }
}

extension VotersRecord.Voter {
    init(_ voter: Voter) {
        self.init()
        voterID = voter.key.id.rawValue
        voterDirectoryID = voter.key.wireDirectory
        endpoints = voter.endpoints.map { endpoint in
            var wire = VotersRecord.Endpoint()
            wire.name = endpoint.name
            wire.host = endpoint.host
            wire.port = endpoint.port
            return wire
        }
        kRaftVersionFeature.minSupportedVersion = voter.versions.minimum
        kRaftVersionFeature.maxSupportedVersion = voter.versions.maximum
    }

    var voter: Voter {
        Voter(
            key: ReplicaKey(wireID: voterID, wireDirectory: voterDirectoryID),
            endpoints: endpoints.map {
                MartletMetadataQuorum.Endpoint(name: $0.name, host: $0.host, port: $0.port)
            },
            versions: KRaftVersionRange(
                minimum: kRaftVersionFeature.minSupportedVersion,
                maximum: kRaftVersionFeature.maxSupportedVersion))
    }
}
