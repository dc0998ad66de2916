import HashTreeCollections
package import MartletKafkaProtocol
import MartletLogModel

/// What a quota belongs to: parts such as user, client id and address, each with a name or, as `nil`, the default of
/// its kind (KIP-546). In the order of the kinds.
package struct QuotaEntity: Hashable, Comparable, Sendable {
    package struct Part: Hashable, Comparable, Sendable {
        package let kind: String
        package let name: String?

        package static func < (left: Part, right: Part) -> Bool {
            guard left.kind == right.kind else { return left.kind < right.kind }
            guard let leftName = left.name else { return right.name != nil }
            guard let rightName = right.name else { return false }
            return leftName < rightName
        }
    }

    package let parts: [Part]

    package init(_ parts: [(kind: String, name: String?)]) {
        self.parts = parts.map { Part(kind: $0.kind, name: $0.name) }.sorted()
    }

    package static func < (left: QuotaEntity, right: QuotaEntity) -> Bool {
        left.parts.lexicographicallyPrecedes(right.parts)
    }

    package func name(of kind: String) -> String?? { parts.first { $0.kind == kind }.map(\.name) }
}

/// Quotas by entity and key, as set; who they apply to is for whoever enforces them.
package struct ClientQuotas: Sendable {
    var values: TreeDictionary<QuotaEntity, [String: Double]> = [:]

    package var entityCount: Int { values.count }

    /// Quotas of one entity, by key.
    package subscript(_ entity: QuotaEntity) -> [String: Double] { values[entity] ?? [:] }

    package static let user = "user"
    package static let clientID = "client-id"
    package static let address = "ip"

    /// Keys by kind of entity, and whether the value must be whole.
    static func key(_ name: String, on entity: QuotaEntity) -> (isLegal: Bool, isWhole: Bool) {
        let isAddress = entity.parts.contains { $0.kind == address }
        return switch name {
        case "producer_byte_rate", "consumer_byte_rate": (!isAddress, true)
        case "request_percentage", "controller_mutation_rate": (!isAddress, false)
        case "connection_creation_rate": (isAddress, true)
        case _: (false, false)
        }
    }
}

extension ClusterController {
    /// AlterClientQuotas (KIP-546). Each entity succeeds or fails alone.
    package borrowing func decide(_ request: AlterClientQuotasRequest) -> Decision<AlterClientQuotasResponse>
    {
        var decision = Decision(response: AlterClientQuotasResponse())
        var added: Set<QuotaEntity> = []
        var seen: Set<QuotaEntity> = []
        for entry in request.entries {
            let entity = QuotaEntity(entry.entity.map { ($0.entityType, $0.entityName) })
            var result = AlterClientQuotasResponse.EntryData()
            result.errorMessage = nil
            result.entity = entry.entity.map {
                var part = AlterClientQuotasResponse.EntityData()
                part.entityType = $0.entityType
                part.entityName = $0.entityName
                return part
            }
            do throws(Refusal) {
                try check(entity)
                guard seen.insert(entity).inserted else {
                    throw .init(.invalidRequest, "The entity appears twice in the request")
                }
                if state.clientQuotas.values[entity] == nil {
                    added.insert(entity)
                    guard
                        state.clientQuotas.values.count + added.count
                            <= ControllerLimits.quotaEntityCountLimit
                    else {
                        throw .init(
                            .policyViolation,
                            "\(ControllerLimits.quotaEntityCountLimit) entities have quotas, the limit; use defaults where many want the same"
                        )
                    }
                }
                let records = try changes(entry.ops, of: entity)
                if !request.validateOnly { decision.records += records }
            } catch {
                result.errorCode = error.code.rawValue
                result.errorMessage = error.message
            }
            decision.response.entries.append(result)
        }
        return decision
    }

    private borrowing func check(_ entity: QuotaEntity) throws(Refusal) {
        let kinds = entity.parts.map(\.kind)
        guard !kinds.isEmpty, Set(kinds).count == kinds.count else {
            throw .init(.invalidRequest, "An entity has one part or more, each of another kind")
        }
        for part in entity.parts {
            guard [ClientQuotas.user, ClientQuotas.clientID, ClientQuotas.address].contains(part.kind) else {
                throw .init(
                    .invalidRequest,
                    "Entities have parts of the kinds user, client-id or ip, not '\(ConfigText.shortened(part.kind))'"
                )
            }
            guard part.name?.isEmpty != true else {
                throw .init(.invalidRequest, "The name of the \(part.kind) is empty; null means the default")
            }
        }
        guard !kinds.contains(ClientQuotas.address) || kinds.count == 1 else {
            throw .init(.invalidRequest, "Quotas of an address stand alone, without user and client id")
        }
    }

    private borrowing func changes(
        _ operations: [AlterClientQuotasRequest.OpData], of entity: QuotaEntity
    ) throws(Refusal) -> [MetadataRecord] {
        var records: [MetadataRecord] = []
        var keys: Set<String> = []
        for operation in operations {
            let (isLegal, isWhole) = ClientQuotas.key(operation.key, on: entity)
            guard isLegal else {
                throw .init(
                    .invalidRequest,
                    "'\(ConfigText.shortened(operation.key))' is no quota of this kind of entity")
            }
            guard keys.insert(operation.key).inserted else {
                throw .init(.invalidRequest, "\(operation.key) is given twice")
            }
            if !operation.remove {
                guard operation.value > 0, operation.value.isFinite else {
                    throw .init(
                        .invalidRequest, "\(operation.key) must be above zero; remove it for no limit")
                }
                guard !isWhole || operation.value == operation.value.rounded() else {
                    throw .init(.invalidRequest, "\(operation.key) must be a whole number")
                }
            }
            let present = state.clientQuotas.values[entity]?[operation.key]
            guard present != (operation.remove ? nil : operation.value) else { continue }
            records.append(
                .clientQuota(entity, operation.key, value: operation.remove ? nil : operation.value))
        }
        return records
    }

    mutating func replay(_ record: ClientQuotaRecord) {
        let entity = QuotaEntity(record.entity.map { ($0.entityType, $0.entityName) })
        var values = state.clientQuotas.values[entity] ?? [:]
        values[record.key] = record.remove ? nil : record.value
        state.clientQuotas.values[entity] = values.isEmpty ? nil : values
        pending.access = true
    }
}

extension MetadataImage {
    /// DescribeClientQuotas (KIP-546): a component asks for a name (0), the default (1) or any (2) of a kind; `strict`
    /// leaves out entities that have other parts besides.
    package func describe(_ request: DescribeClientQuotasRequest) -> DescribeClientQuotasResponse {
        var response = DescribeClientQuotasResponse()
        response.errorMessage = nil
        let isSound = request.components.allSatisfy { component in
            switch component.matchType {
            case 0: component.match != nil
            case 1, 2: component.match == nil
            case _: false
            }
        }
        guard isSound, Set(request.components.map(\.entityType)).count == request.components.count else {
            response.errorCode = ErrorCode.invalidRequest.rawValue
            response.errorMessage =
                "A component asks for one kind of entity once: 0 with a name, 1 for the default, 2 for all"
            return response
        }
        var entries: [DescribeClientQuotasResponse.EntryData] = []
        for entity in clientQuotas.values.keys.sorted() {
            guard !request.strict || entity.parts.count == request.components.count else { continue }
            let isWanted = request.components.allSatisfy { component in
                guard let name = entity.name(of: component.entityType) else { return false }
                return switch component.matchType {
                case 0: name == component.match
                case 1: name == nil
                case _: true
                }
            }
            guard isWanted, let values = clientQuotas.values[entity] else { continue }
            var entry = DescribeClientQuotasResponse.EntryData()
            entry.entity = entity.parts.map {
                var part = DescribeClientQuotasResponse.EntityData()
                part.entityType = $0.kind
                part.entityName = $0.name
                return part
            }
            entry.values = values.keys.sorted().map {
                var value = DescribeClientQuotasResponse.ValueData()
                value.key = $0
                value.value = values[$0] ?? 0
                return value
            }
            entries.append(entry)
        }
        response.entries = entries
        return response
    }

    func quotaRecords() -> [MetadataRecord] {
        clientQuotas.values.keys.sorted().flatMap { entity in
            let values = clientQuotas.values[entity] ?? [:]
            return values.keys.sorted().map { MetadataRecord.clientQuota(entity, $0, value: values[$0]) }
        }
    }
}

extension MetadataRecord {
    /// Without a value the quota is removed.
    static func clientQuota(_ entity: QuotaEntity, _ key: String, value: Double?) -> MetadataRecord {
        var record = ClientQuotaRecord()
        record.entity = entity.parts.map {
            var part = ClientQuotaRecord.EntityData()
            part.entityType = $0.kind
            part.entityName = $0.name
            return part
        }
        record.key = key
        record.value = value ?? 0
        record.remove = value == nil
        return .clientQuota(record)
    }
}
