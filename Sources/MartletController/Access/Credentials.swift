import HashTreeCollections
package import MartletKafkaProtocol
package import MartletLogModel
import NIOCore

/// Hash function of a SCRAM credential, by Kafka's numbers (KIP-554).
package enum ScramMechanism: Int8, Hashable, Comparable, Sendable {
    case sha256 = 1
    case sha512 = 2

    package static func < (left: ScramMechanism, right: ScramMechanism) -> Bool {
        left.rawValue < right.rawValue
    }
}

package struct ScramUser: Hashable, Comparable, Sendable {
    package let name: String
    package let mechanism: ScramMechanism

    package init(name: String, mechanism: ScramMechanism) {
        self.name = name
        self.mechanism = mechanism
    }

    package static func < (left: ScramUser, right: ScramUser) -> Bool {
        left.name == right.name ? left.mechanism < right.mechanism : left.name < right.name
    }
}

/// What a server keeps of a password (RFC 5802).
package struct ScramCredential: Hashable, Sendable {
    package let salt: [UInt8]
    package let storedKey: [UInt8]
    package let serverKey: [UInt8]
    package let iterations: Int32
}

/// A rule about who may do what, as stored; checked by whoever serves requests.
package struct AccessControl: Hashable, Sendable {
    package let resourceType: Int8
    package let resourceName: String
    package let patternType: Int8
    package let principal: String
    package let host: String
    package let operation: Int8
    package let permission: Int8
}

extension ClusterController {
    /// Iterations that a credential may ask for: fewer are guessed too fast, more keep the broker busy.
    private static let scramIterations: ClosedRange<Int32> = 4096...16384

    /// AlterUserScramCredentials (KIP-554). One answer per user; a user with one bad change keeps everything.
    ///
    /// `derive` yields stored and server key from a salted password: HMAC and hash are the shell's.
    package borrowing func decide(
        _ request: AlterUserScramCredentialsRequest,
        derive: (ScramMechanism, [UInt8]) -> (storedKey: [UInt8], serverKey: [UInt8])
    ) -> Decision<AlterUserScramCredentialsResponse> {
        var decision = Decision(response: AlterUserScramCredentialsResponse())
        var refusals: [String: Refusal] = [:]
        var changes: [(user: String, record: MetadataRecord)] = []
        var seen: Set<ScramUser> = []
        var added = 0

        func mechanism(_ number: Int8, _ name: String) throws(Refusal) -> ScramUser {
            guard !name.isEmpty else { throw .init(.unacceptableCredential, "The name of the user is empty") }
            guard let mechanism = ScramMechanism(rawValue: number) else {
                throw .init(
                    .unsupportedSaslMechanism,
                    "Mechanism \(number) is unknown; 1 is SCRAM-SHA-256, 2 SCRAM-SHA-512")
            }
            let user = ScramUser(name: name, mechanism: mechanism)
            guard seen.insert(user).inserted else {
                throw .init(.duplicateResource, "A credential of the user is given twice")
            }
            return user
        }
        for deletion in request.deletions {
            do throws(Refusal) {
                let user = try mechanism(deletion.mechanism, deletion.name)
                guard state.credentials[user] != nil else {
                    throw .init(.resourceNotFound, "The user has no credential of that mechanism")
                }
                var record = RemoveUserScramCredentialRecord()
                record.name = user.name
                record.mechanism = user.mechanism.rawValue
                changes.append((user.name, .removeUserScramCredential(record)))
            } catch {
                refusals[deletion.name] = refusals[deletion.name] ?? error
            }
        }
        for upsertion in request.upsertions {
            do throws(Refusal) {
                let user = try mechanism(upsertion.mechanism, upsertion.name)
                guard Self.scramIterations.contains(upsertion.iterations) else {
                    throw .init(
                        .unacceptableCredential,
                        "\(upsertion.iterations) iterations; \(Self.scramIterations.lowerBound) to \(Self.scramIterations.upperBound) are possible"
                    )
                }
                guard upsertion.salt.readableBytes > 0, upsertion.saltedPassword.readableBytes > 0 else {
                    throw .init(.unacceptableCredential, "Salt or salted password is empty")
                }
                if state.credentials[user] == nil { added += 1 }
                guard state.credentials.count + added <= ControllerLimits.credentialCountLimit else {
                    throw .init(
                        .policyViolation,
                        "The cluster has its limit of \(ControllerLimits.credentialCountLimit) credentials")
                }
                let keys = derive(user.mechanism, Array(upsertion.saltedPassword.readableBytesView))
                let credential = ScramCredential(
                    salt: Array(upsertion.salt.readableBytesView), storedKey: keys.storedKey,
                    serverKey: keys.serverKey, iterations: upsertion.iterations)
                changes.append((user.name, .credential(user, credential)))
            } catch {
                refusals[upsertion.name] = refusals[upsertion.name] ?? error
            }
        }
        decision.records = changes.compactMap { refusals[$0.user] == nil ? $0.record : nil }
        for name in Set(request.deletions.map(\.name) + request.upsertions.map(\.name)).sorted() {
            var result = AlterUserScramCredentialsResponse.AlterUserScramCredentialsResult()
            result.user = name
            result.errorCode = (refusals[name]?.code ?? .none).rawValue
            result.errorMessage = refusals[name]?.message
            decision.response.results.append(result)
        }
        return decision
    }

    mutating func replay(_ record: UserScramCredentialRecord) {
        // A mechanism of another release is of no use here, and no reason to stop.
        guard let mechanism = ScramMechanism(rawValue: record.mechanism) else { return }
        state.credentials[ScramUser(name: record.name, mechanism: mechanism)] = ScramCredential(
            salt: Array(record.salt.readableBytesView), storedKey: Array(record.storedKey.readableBytesView),
            serverKey: Array(record.serverKey.readableBytesView), iterations: record.iterations)
        pending.access = true
    }

    mutating func replay(_ record: RemoveUserScramCredentialRecord) {
        guard let mechanism = ScramMechanism(rawValue: record.mechanism) else { return }
        state.credentials[ScramUser(name: record.name, mechanism: mechanism)] = nil
        pending.access = true
    }

    mutating func replay(_ record: AccessControlEntryRecord) {
        state.accessControls[record.id] = AccessControl(
            resourceType: record.resourceType, resourceName: record.resourceName,
            patternType: record.patternType,
            principal: record.principal, host: record.host, operation: record.operation,
            permission: record.permissionType)
        pending.access = true
    }

    mutating func replay(_ record: RemoveAccessControlEntryRecord) {
        state.accessControls[record.id] = nil
        pending.access = true
    }
}

extension MetadataImage {
    package var credentialCount: Int { credentials.count }

    package func credential(of user: ScramUser) -> ScramCredential? { credentials[user] }

    /// All access control entries in the order of their ids.
    package func sortedAccessControls() -> [(id: UniversalID, rule: AccessControl)] {
        accessControls.keys.sorted().compactMap { id in accessControls[id].map { (id, $0) } }
    }

    /// DescribeUserScramCredentials (KIP-554): mechanisms and iterations, never a secret. Without a list, all users.
    package func describe(_ request: DescribeUserScramCredentialsRequest)
        -> DescribeUserScramCredentialsResponse
    {
        var response = DescribeUserScramCredentialsResponse()
        response.errorMessage = nil
        var known: [String: [DescribeUserScramCredentialsResponse.CredentialInfo]] = [:]
        for user in credentials.keys.sorted() {
            var info = DescribeUserScramCredentialsResponse.CredentialInfo()
            info.mechanism = user.mechanism.rawValue
            info.iterations = credentials[user]?.iterations ?? 0
            known[user.name, default: []].append(info)
        }
        let asked = request.users.flatMap { $0.isEmpty ? nil : $0.map(\.name) } ?? known.keys.sorted()
        var counts: [String: Int] = [:]
        for name in asked { counts[name, default: 0] += 1 }
        var answered: Set<String> = []
        for name in asked where answered.insert(name).inserted {
            var result = DescribeUserScramCredentialsResponse.DescribeUserScramCredentialsResult()
            result.user = name
            result.errorMessage = nil
            if counts[name, default: 0] > 1 {
                result.errorCode = ErrorCode.duplicateResource.rawValue
                result.errorMessage = "The user is asked for twice"
            } else if let infos = known[name] {
                result.credentialInfos = infos
            } else {
                result.errorCode = ErrorCode.resourceNotFound.rawValue
                result.errorMessage = "There is no credential of that user"
            }
            response.results.append(result)
        }
        return response
    }

    func accessRecords() -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        for user in credentials.keys.sorted() {
            if let credential = credentials[user] { records.append(.credential(user, credential)) }
        }
        for id in accessControls.keys.sorted() {
            guard let rule = accessControls[id] else { continue }
            var record = AccessControlEntryRecord()
            record.id = id
            record.resourceType = rule.resourceType
            record.resourceName = rule.resourceName
            record.patternType = rule.patternType
            record.principal = rule.principal
            record.host = rule.host
            record.operation = rule.operation
            record.permissionType = rule.permission
            records.append(.accessControlEntry(record))
        }
        return records
    }
}

extension MetadataRecord {
    static func credential(_ user: ScramUser, _ credential: ScramCredential) -> MetadataRecord {
        var record = UserScramCredentialRecord()
        record.name = user.name
        record.mechanism = user.mechanism.rawValue
        record.salt = ByteBuffer(bytes: credential.salt)
        record.storedKey = ByteBuffer(bytes: credential.storedKey)
        record.serverKey = ByteBuffer(bytes: credential.serverKey)
        record.iterations = credential.iterations
        return .userScramCredential(record)
    }
}
