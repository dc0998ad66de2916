package import MartletKafkaProtocol

extension Decision {
    /// The records as batches of the metadata log, each within ``ControllerLimits/recordsPerBatchLimit``. Where they
    /// belong together and do not fit into one, they stand between the marks of a transaction (KIP-868).
    ///
    /// Append the batches one after the other without others between, and replay all; answer when the last one is
    /// committed.
    package var batches: [[MetadataRecord]] {
        let limit = ControllerLimits.recordsPerBatchLimit
        guard records.count > limit else { return records.isEmpty ? [] : [records] }
        var marked = records
        if isAtomic {
            marked.insert(.beginTransaction(BeginTransactionRecord()), at: 0)
            marked.append(.endTransaction(EndTransactionRecord()))
        }
        return stride(from: 0, to: marked.count, by: limit).map { start in
            Array(marked[start..<min(start + limit, marked.count)])
        }
    }
}
