/// Under which membership positions are committed within a transaction, so that a member that the group has left
/// behind is refused (KIP-447). From ``Consumer/groupMetadata()``.
public struct ConsumerGroupMetadata: Hashable, Sendable {
    public var groupID: String
    /// Generation of the classic protocol, or member epoch of the consumer protocol; `nil` without membership.
    public var generation: Int32?
    /// `nil` without membership.
    public var memberID: String?
    public var groupInstanceID: String?

    /// Without the other members of the group in mind: nobody is fenced by such a commit.
    public init(groupID: String) { self.groupID = groupID }

    init(_ groupID: String, _ identity: ClientEngine.CommitIdentity) {
        self.groupID = groupID
        generation = identity.generation >= 0 ? identity.generation : nil
        memberID = identity.memberID.isEmpty ? nil : identity.memberID
        groupInstanceID = identity.groupInstanceID
    }
}
