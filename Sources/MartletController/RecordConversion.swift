import MartletKafkaProtocol
import MartletLogModel

// Translation between persisted records and the image. "-1" and friends end here.

extension PartitionImage {
    init(_ record: PartitionRecord) {
        replicas = record.replicas.map { BrokerID($0) }
        // Most partitions are fully in sync: equal arrays share one allocation.
        isr = record.isr == record.replicas ? replicas : record.isr.map { BrokerID($0) }
        eligibleLeaderReplicas = (record.eligibleLeaderReplicas ?? []).map { BrokerID($0) }
        lastKnownEligibleReplicas = (record.lastKnownElr ?? []).map { BrokerID($0) }
        addingReplicas = record.addingReplicas.map { BrokerID($0) }
        removingReplicas = record.removingReplicas.map { BrokerID($0) }
        directories = record.directories
        leader = record.leader < 0 ? nil : BrokerID(record.leader)
        leaderEpoch = LeaderEpoch(record.leaderEpoch)
        partitionEpoch = record.partitionEpoch
        isRecovering = record.leaderRecoveryState == 1
    }

    func record(topicID: UniversalID, index: Int) -> PartitionRecord {
        var record = PartitionRecord()
        record.partitionID = Int32(index)
        record.topicID = topicID
        record.replicas = replicas.map(\.rawValue)
        record.isr = isr.map(\.rawValue)
        record.removingReplicas = removingReplicas.map(\.rawValue)
        record.addingReplicas = addingReplicas.map(\.rawValue)
        record.leader = leader?.rawValue ?? -1
        record.leaderRecoveryState = isRecovering ? 1 : 0
        record.leaderEpoch = leaderEpoch.rawValue
        record.partitionEpoch = partitionEpoch
        record.directories = directories
        record.eligibleLeaderReplicas =
            eligibleLeaderReplicas.isEmpty ? nil : eligibleLeaderReplicas.map(\.rawValue)
        record.lastKnownElr =
            lastKnownEligibleReplicas.isEmpty ? nil : lastKnownEligibleReplicas.map(\.rawValue)
        return record
    }

    mutating func clearEligible() {
        eligibleLeaderReplicas = []
        lastKnownEligibleReplicas = []
        partitionEpoch += 1
    }

    /// Applies what changed. A new leader, or none, starts a new leader epoch; every change a new partition
    /// epoch (KIP-631: both are derived on replay, not stored in the change).
    mutating func apply(_ change: PartitionChangeRecord) {
        if let replicas = change.replicas { self.replicas = replicas.map { BrokerID($0) } }
        if let isr = change.isr {
            let members = isr.map { BrokerID($0) }
            // Most partitions are fully in sync: equal arrays share one allocation.
            self.isr = members == replicas ? replicas : members
        }
        if let removing = change.removingReplicas { removingReplicas = removing.map { BrokerID($0) } }
        if let adding = change.addingReplicas { addingReplicas = adding.map { BrokerID($0) } }
        if let directories = change.directories { self.directories = directories }
        if let eligible = change.eligibleLeaderReplicas {
            eligibleLeaderReplicas = eligible.map { BrokerID($0) }
        }
        if let lastKnown = change.lastKnownElr { lastKnownEligibleReplicas = lastKnown.map { BrokerID($0) } }
        if change.leader != PartitionChange.leaderUnchanged {
            leader = change.leader < 0 ? nil : BrokerID(change.leader)
            leaderEpoch = LeaderEpoch(leaderEpoch.rawValue + 1)
        }
        if change.leaderRecoveryState >= 0 { isRecovering = change.leaderRecoveryState == 1 }
        partitionEpoch += 1
    }
}

enum PartitionChange {
    /// Value of `PartitionChangeRecord.leader` that says "as before"; -1 says "no leader now".
    static let leaderUnchanged: Int32 = -2
}

extension BrokerImage {
    init(_ record: RegisterBrokerRecord) {
        id = BrokerID(record.brokerID)
        epoch = record.brokerEpoch
        incarnationID = record.incarnationID
        endpoints = record.endPoints.map {
            .init(name: $0.name, host: $0.host, port: $0.port, securityProtocol: $0.securityProtocol)
        }
        features = record.features.map {
            .init(name: $0.name, minimum: $0.minSupportedVersion, maximum: $0.maxSupportedVersion)
        }
        rack = record.rack
        isFenced = record.fenced
        isInControlledShutdown = record.inControlledShutdown
        logDirectories = record.logDirs
    }

    var record: RegisterBrokerRecord {
        var record = RegisterBrokerRecord()
        record.brokerID = id.rawValue
        record.brokerEpoch = epoch
        record.incarnationID = incarnationID
        record.endPoints = endpoints.map {
            var endpoint = RegisterBrokerRecord.BrokerEndpoint()
            endpoint.name = $0.name
            endpoint.host = $0.host
            endpoint.port = $0.port
            endpoint.securityProtocol = $0.securityProtocol
            return endpoint
        }
        record.features = features.map {
            var feature = RegisterBrokerRecord.BrokerFeature()
            feature.name = $0.name
            feature.minSupportedVersion = $0.minimum
            feature.maxSupportedVersion = $0.maximum
            return feature
        }
        record.rack = rack
        record.fenced = isFenced
        record.inControlledShutdown = isInControlledShutdown
        record.logDirs = logDirectories
        return record
    }
}

extension MetadataRecord {
    static func config(resource: ConfigResource, name: String, value: String?) -> MetadataRecord {
        var record = ConfigRecord()
        record.resourceType = resource.wireType
        record.resourceName = resource.wireName
        record.name = name
        record.value = value
        return .config(record)
    }
}
