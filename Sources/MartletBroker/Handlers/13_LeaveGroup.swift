internal import MartletCoordinators
package import MartletKafkaProtocol
internal import NIOCore

/// LeaveGroup (key 13). Version 3 names several members (KIP-345), 5 adds a reason (KIP-800); before, one member and
/// one error for the whole answer.
package enum LeaveGroupHandler {
    package static func handle(_ request: LeaveGroupRequest, _ context: RequestContext) {
        let isSingle = context.version < 3
        var batched = request
        if isSingle {
            var member = LeaveGroupRequest.MemberIdentity()
            member.memberID = request.memberID
            batched.memberID = ""
            batched.members = [member]
        }
        context.respond(
            when: context.coordinate(group: request.groupID, .leaveGroup(batched)).map {
                response -> LeaveGroupResponse in
                guard case .leaveGroup(var answer) = response else { return response.mismatch() }
                if isSingle {
                    if answer.errorCode == 0 { answer.errorCode = answer.members.first?.errorCode ?? 0 }
                    answer.members = []
                }
                return answer
            })
    }
}
