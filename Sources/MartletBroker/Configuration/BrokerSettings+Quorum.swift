internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletStorage

extension BrokerSettings {
    /// Where other nodes of the quorum find this one.
    var quorumEndpoint: Endpoint { (advertised ?? listen).quorumEndpoint }

    /// What the metadata quorum is told of the node with this data directory.
    func quorumConfiguration(_ meta: MetaProperties) -> QuorumConfiguration {
        var known = voters.map {
            MartletMetadataQuorum.Voter(
                key: ReplicaKey(BrokerID($0.nodeID), nil), endpoints: [$0.address.quorumEndpoint])
        }
        // A node that was the whole quorum takes others in through its log: by configuration alone they could elect
        // one of theirs, who has nothing of what it has committed.
        if known.isEmpty || meta.origin == .alone {
            known = [MartletMetadataQuorum.Voter(key: ReplicaKey(nodeID, nil), endpoints: [quorumEndpoint])]
        }
        var configuration = QuorumConfiguration(
            node: ReplicaKey(nodeID, meta.directoryID), endpoints: [quorumEndpoint], bootstrapVoters: VoterSet(known))
        configuration.startsCluster = meta.origin != .joined
        return configuration
    }
}

extension BrokerSettings.Address {
    fileprivate var quorumEndpoint: Endpoint {
        Endpoint(name: QuorumWire.listenerName, host: host, port: UInt16(clamping: port))
    }
}
