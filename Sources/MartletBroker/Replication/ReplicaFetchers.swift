import Logging
import MartletLogModel
import NIOCore

/// What follows leaders elsewhere from one loop: a ``ReplicaFetcher`` for each leader. Confined to the loop.
final class ReplicaFetchers: ReplicaFetching {
    private let context: ReplicaFetcher.Context
    private var leaders: [PartitionKey: BrokerID] = [:]
    private var fetchers: [BrokerID: ReplicaFetcher] = [:]
    private var isClosed = false

    /// - Parameter brokerEpoch: of this broker's present registration, negative while there is none.
    init(
        eventLoop: any EventLoop, nodeID: BrokerID, peers: any PeerNetwork, logger: Logger,
        brokerEpoch: @escaping () -> Int64, clusterID: String, random: RandomSource,
        settings: ReplicaFetcher.Settings = ReplicaFetcher.Settings()
    ) {
        context = ReplicaFetcher.Context(
            eventLoop: eventLoop, nodeID: nodeID, peers: peers, logger: logger, brokerEpoch: brokerEpoch,
            clusterID: clusterID, random: random, settings: settings)
    }

    /// Fetches the partition from `leader` from now on, and from nobody else. Saying it again with another leader
    /// moves it; with the same one it ends whatever pause the partition is in.
    ///
    /// - Parameter address: nil if it is not known yet; ``leaderMoved(_:to:)`` tells it later.
    func follow(_ partition: any FollowedPartition, leader: BrokerID, at address: BrokerSettings.Address?) {
        context.eventLoop.preconditionInEventLoop()
        guard !isClosed else { return }
        let key = partition.followedID
        if let former = leaders[key], former != leader { unfollow(key) }
        leaders[key] = leader
        if let fetcher = fetchers[leader] {
            if let address { fetcher.located(at: address) }
            fetcher.add(partition)
        } else {
            let fetcher = ReplicaFetcher(leader: leader, at: address, context)
            fetchers[leader] = fetcher
            fetcher.add(partition)
        }
    }

    /// Nothing is asked for the partition any more, and no answer reaches it.
    func unfollow(_ id: PartitionKey) {
        context.eventLoop.preconditionInEventLoop()
        guard let leader = leaders.removeValue(forKey: id), let fetcher = fetchers[leader] else { return }
        fetcher.remove(id)
        if fetcher.isEmpty {
            fetcher.close()
            fetchers[leader] = nil
        }
    }

    /// The broker registered anew, at another address or the same.
    func leaderMoved(_ leader: BrokerID, to address: BrokerSettings.Address) {
        context.eventLoop.preconditionInEventLoop()
        fetchers[leader]?.moved(to: address)
    }

    /// The partition may have something to ask again.
    func wake(_ id: PartitionKey) {
        context.eventLoop.preconditionInEventLoop()
        if let leader = leaders[id] { fetchers[leader]?.wake() }
    }

    /// Connections close, and no partition hears anything any more.
    func close() {
        context.eventLoop.preconditionInEventLoop()
        isClosed = true
        let open = fetchers
        fetchers = [:]
        leaders = [:]
        for (_, fetcher) in open.sorted(by: { $0.key < $1.key }) { fetcher.close() }
    }
}
