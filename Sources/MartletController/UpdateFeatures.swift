package import MartletKafkaProtocol
import MartletLogModel

extension ClusterController {
    /// UpdateFeatures (KIP-584, KIP-778, KIP-1022): all updates together or none. The answer names the first that is
    /// refused, and every update with its own outcome for versions that have room for it.
    ///
    /// Version 0 says "downgrade allowed" where later ones have a type: 1 upgrade, 2 safe, 3 unsafe downgrade.
    package borrowing func decide(_ request: UpdateFeaturesRequest) -> Decision<UpdateFeaturesResponse> {
        var decision = Decision(response: UpdateFeaturesResponse())
        decision.response.errorMessage = nil
        var seen: Set<String> = []
        for update in request.featureUpdates {
            var result = UpdateFeaturesResponse.UpdatableFeatureResult()
            result.feature = update.feature
            result.errorMessage = nil
            do throws(Refusal) {
                guard seen.insert(update.feature).inserted else {
                    throw .init(
                        .invalidRequest, "Feature \(ConfigText.shortened(update.feature)) appears twice")
                }
                try check(update)
                if update.maxVersionLevel != state.featureLevel(update.feature), !request.validateOnly {
                    var record = FeatureLevelRecord()
                    record.name = update.feature
                    record.featureLevel = update.maxVersionLevel
                    decision.records.append(.featureLevel(record))
                }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
                if decision.response.errorCode == 0 {
                    decision.response.errorCode = error.code.rawValue
                    decision.response.errorMessage = error.message
                }
            }
            decision.response.results.append(result)
        }
        if decision.response.errorCode != 0 { decision.records = [] }
        return decision
    }

    private borrowing func check(_ update: UpdateFeaturesRequest.FeatureUpdateKey) throws(Refusal) {
        let name = update.feature
        let level = update.maxVersionLevel
        guard let range = Features.supported.first(where: { $0.name == name }), name != Features.quorumVersion
        else {
            throw .init(
                .invalidUpdateVersion,
                "Feature '\(ConfigText.shortened(name))' is not one that can be set here")
        }
        guard range.minimum <= level, level <= range.maximum else {
            throw .init(
                .invalidUpdateVersion,
                "Level \(level) of \(name) is not possible; this release knows \(range.minimum) to \(range.maximum)"
            )
        }
        let current = state.featureLevel(name)
        guard (1...3).contains(update.upgradeType) else {
            throw .init(
                .invalidUpdateVersion, "Type \(update.upgradeType) of an update is unknown; 1, 2 and 3 exist")
        }
        let mayFall = update.allowDowngrade || update.upgradeType > 1
        guard level >= current || mayFall else {
            throw .init(
                .invalidUpdateVersion,
                "\(name) is at \(current): a downgrade to \(level) must be asked for as one")
        }
        guard level >= current || name != Features.metadataVersion else {
            throw .init(
                .invalidUpdateVersion,
                "metadata.version is at \(current) and cannot fall: records of that version may be in the log"
            )
        }
        for broker in state.brokers {
            let supported = broker.features.first { $0.name == name }
            guard let supported, supported.minimum <= level, level <= supported.maximum else {
                if supported == nil, level == 0 { continue }
                throw .init(
                    .invalidUpdateVersion,
                    "Broker \(broker.id) does not support level \(level) of \(name); upgrade or unregister it first"
                )
            }
        }
        if name == Features.eligibleLeaderReplicas, level == 0, current > 0,
            activeIndex.hasLeaderlessPartitions
        {
            throw .init(
                .invalidUpdateVersion,
                "Partitions without a leader may depend on their eligible replicas: let their brokers come back first"
            )
        }
    }
}
