import MartletLogModel

/// Membership of a consumer in its group, in one of the two protocols of groups.
///
/// User code has its say within the polling task: a membership asks for a ``RebalanceStep`` and goes on when `revoked`
/// or `assigned` says that it is done. Confined to the engine's loop.
protocol GroupMembership: AnyObject, Sendable {
    /// Under which membership offsets are committed.
    var commitIdentity: ClientEngine.CommitIdentity { get }
    /// Joins, or changes the subscription of a member.
    func subscribe(_ subscription: GroupSubscription)
    /// The polling task has given up these partitions.
    func revoked(_ partitions: [TopicPartition])
    /// The polling task has told the user about these partitions.
    func assigned(_ partitions: [TopicPartition])
    func metadataChanged()
    /// Leaves the group; `completion` comes when the coordinator knows, or after a short wait.
    func leave(_ completion: @escaping () -> Void)
}
