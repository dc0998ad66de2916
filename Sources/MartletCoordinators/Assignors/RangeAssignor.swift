import MartletLogModel

/// Each topic's partitions in consecutive runs over its subscribers, static members first in the order of
/// their instances. Members keep their places, so what they got moves only when somebody before them changes.
enum RangeAssignor {
    static func assign(_ spec: AssignmentSpec) -> [String: TopicPartitions] {
        let members = spec.members.sorted { left, right in
            switch (left.instanceID, right.instanceID) {
            case (let a?, let b?): a < b
            case (.some, nil): true
            case (nil, .some): false
            case (nil, nil): left.id < right.id
            }
        }
        var subscriberCounts: [UniversalID: Int32] = [:]
        for member in members { for topic in member.topics { subscriberCounts[topic, default: 0] += 1 } }

        var places: [UniversalID: Int32] = [:]
        var result: [String: TopicPartitions] = [:]
        for member in members {
            var assigned: TopicPartitions = [:]
            for topic in member.topics {
                guard let partitions = spec.partitionCounts[topic], let count = subscriberCounts[topic] else {
                    continue
                }
                // The first `partitions % count` subscribers get one more.
                let place = places[topic, default: 0]
                places[topic] = place + 1
                let share = partitions / count
                let extra = partitions % count
                let start = place * share + min(place, extra)
                let end = start + share + (place < extra ? 1 : 0)
                if start < end { assigned[topic] = Set(start..<end) }
            }
            result[member.id] = assigned
        }
        return result
    }
}
