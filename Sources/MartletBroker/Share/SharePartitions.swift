internal import MartletController
internal import MartletCoordinators
internal import MartletLogModel
internal import NIOCore

/// The share partitions of one event loop: those whose partition lives there. Confined to the loop.
package final class SharePartitions {
    /// Share partitions of one loop; who asks for more is told to come again.
    private static let countLimit = 50_000
    /// How long one stays that nobody uses: it can be had again from the share coordinator.
    private static let idleTime: TimeAmount = .seconds(60)

    private unowned let loop: BrokerLoop
    private var shells: [SharePartitionID: SharePartitionShell] = [:]
    private var sweepTask: RepeatedTask?
    private var isStopping = false

    package init(loop: BrokerLoop) { self.loop = loop }

    /// The share partition, made on first use; `nil` if there are too many or the broker stops.
    func shell(_ id: SharePartitionID, _ key: PartitionKey) -> SharePartitionShell? {
        if let shell = shells[id] { return shell }
        guard !isStopping, shells.count < Self.countLimit else { return nil }
        let shell = SharePartitionShell(id: id, key: key, loop: loop)
        if !shell.isClosed { shells[id] = shell }
        if sweepTask == nil {
            let loop = self.loop
            sweepTask = loop.eventLoop.scheduleRepeatedTask(initialDelay: Self.idleTime, delay: Self.idleTime) { _ in
                loop.sharePartitions.sweep()
            }
        }
        return shell
    }

    func existing(_ id: SharePartitionID) -> SharePartitionShell? { shells[id] }

    func remove(_ shell: SharePartitionShell) {
        if shells[shell.id] === shell { shells[shell.id] = nil }
    }

    fileprivate func sweep() {
        let deadline = loop.eventLoop.now - Self.idleTime
        for shell in inOrder where shell.lastUse < deadline && shell.isIdle {
            shell.close(.notLeaderOrFollower, "nobody used the share partition")
        }
        guard shells.isEmpty else { return }
        sweepTask?.cancel()
        sweepTask = nil
    }

    private var inOrder: [SharePartitionShell] { shells.values.sorted { $0.id < $1.id } }

    /// The share coordinator has another state than the one this leader works with.
    func stateChanged(_ id: SharePartitionID) {
        shells[id]?.close(.notLeaderOrFollower, "the offsets of the group were set anew")
    }

    func topicsDeleted(_ topics: [UniversalID]) {
        guard !topics.isEmpty else { return }
        let gone = Set(topics)
        for shell in inOrder where gone.contains(shell.id.topic) {
            shell.close(.unknownTopicOrPartition, "the topic was deleted")
        }
    }

    package func configurationChanged() {
        for shell in inOrder { shell.configurationChanged() }
    }

    /// What the member holds of these is free again.
    func release(_ member: String, _ ids: [SharePartitionID]) {
        for id in ids { shells[id]?.release(member) }
    }

    package func stop() {
        isStopping = true
        sweepTask?.cancel()
        sweepTask = nil
        for shell in inOrder { shell.close(.notLeaderOrFollower, "the broker is shutting down") }
    }
}

extension ShareGroupSettings {
    init(_ values: ShareGroupValues) {
        self.init()
        heartbeatIntervalMilliseconds = values.heartbeatIntervalMilliseconds
        sessionTimeoutMilliseconds = values.sessionTimeoutMilliseconds
        lockMilliseconds = values.lockMilliseconds
        deliveryCountLimit = values.deliveryCountLimit
        recordLockLimit = values.recordLockLimit
        offsetReset = values.offsetReset
        readsCommitted = values.readsCommitted
        allowsRenewal = values.allowsRenewal
    }
}

extension ShareGroupConfiguration {
    init(_ image: MetadataImage) {
        self.init(
            maxSize: image.brokerConfiguration.share.maxSize,
            settings: ShareGroupSettings(image.shareGroupValues(nil)),
            overrides: Dictionary(
                uniqueKeysWithValues: image.configuredGroups.map {
                    ($0, ShareGroupSettings(image.shareGroupValues($0)))
                }))
    }
}

extension BrokerLoop {
    func shareSettings(of group: String) -> ShareGroupSettings {
        var settings = ShareGroupSettings(image.shareGroupValues(group))
        settings.suspended = services.suspended
        return settings
    }

    /// Whether the cluster has share groups (KIP-932).
    var servesShareGroups: Bool { image.featureLevel(Features.shareVersion) >= 1 }
}
