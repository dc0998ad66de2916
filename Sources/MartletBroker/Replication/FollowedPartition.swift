import MartletLogModel
import MartletReplication
import NIOCore

/// A partition that this broker follows, as its fetcher sees it. Everything happens on its loop.
protocol FollowedPartition: AnyObject {
    var followedID: PartitionKey { get }
    /// Where this replica's log begins: the leader waits for it when records are deleted (KIP-107).
    var followedLogStart: Offset { get }
    /// What to ask the leader for; nil: nothing now, ``ReplicaFetchers/wake(_:)`` says when that may be over. It is
    /// asked often and changes nothing.
    func nextReplicaFetch() -> ReplicaFetch?
    /// What the leader said to exactly that request, which the partition would ask again at this moment. `records` are
    /// whole batches, checked already (header, checksum, order of offsets and epochs); nil for none.
    func replicaFetchAnswered(_ sent: ReplicaFetch, _ answer: ReplicaFetchAnswer, records: ByteBuffer?)
}
