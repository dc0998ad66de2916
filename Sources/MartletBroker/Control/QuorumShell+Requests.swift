internal import Logging
internal import MartletController
internal import MartletKafkaProtocol
internal import MartletLogModel
internal import MartletMetadataQuorum
internal import MartletStorage
internal import NIOCore

/// What others ask of this node of the quorum, and the answers out of its log and snapshots.
extension QuorumShell {
    enum Reply: Sendable {
        case answer(QuorumAnswer)
        /// Whole batches, as they lie in the log.
        case records(LogAnswer, ByteBuffer)
    }

    struct Waiting {
        var promise: EventLoopPromise<Reply>
        var deadline: Instant
    }

    /// The node does not answer; the connection ends, and the other side asks again.
    struct Unanswered: Error {}

    /// Requests without an answer: the core bounds fetches that wait; everything else is answered within a flush.
    private static let requestLimit = 25_000
    private static let sweepInterval: TimeAmount = .seconds(1)
    /// Beyond the time that the request itself may take.
    private static let answerLimitMilliseconds: Int64 = 4_000

    /// From any thread; completes on the quorum's loop.
    func ask(_ request: QuorumRequest) -> EventLoopFuture<Reply> {
        let promise = eventLoop.makePromise(of: Reply.self)
        eventLoop.execute {
            guard !self.isClosing, self.requests.count < Self.requestLimit else { return promise.fail(Unanswered()) }
            var wait = Self.answerLimitMilliseconds
            switch request {
            case .fetch(let fetch): wait += min(fetch.maxWaitMilliseconds, 60_000)
            case .addVoter(let addition): wait += min(max(0, addition.timeoutMilliseconds), QuorumLimits.catchUpMilliseconds)
            case .vote, .beginEpoch, .endEpoch, .fetchSnapshot, .removeVoter, .updateVoter: break
            }
            if self.isAlone, let refusal = request.refusal(self.soleVoter) { return promise.succeed(.answer(refusal)) }
            self.lastRequest += 1
            let id = RequestID(rawValue: self.lastRequest)
            self.requests[id] = Waiting(promise: promise, deadline: self.now.advanced(byMilliseconds: wait))
            self.scheduleSweep()
            self.handle(.requested(id, request))
        }
        return promise.futureResult
    }

    /// The only voter needs nobody's vote and follows nobody: whoever stands, or leads, is of a quorum that was founded
    /// beside it by mistake, and must not take its leadership.
    private var soleVoter: AnswerHeader {
        AnswerHeader(error: .invalidVoterKey, epoch: epoch, leader: leader)
    }

    private func scheduleSweep() {
        guard requestSweep == nil else { return }
        requestSweep = eventLoop.scheduleTask(in: Self.sweepInterval) {
            self.requestSweep = nil
            let now = self.now
            let late = self.requests.filter { $0.value.deadline <= now }.keys.sorted { $0.rawValue < $1.rawValue }
            for id in late { self.requests.removeValue(forKey: id)?.promise.fail(Unanswered()) }
            if !self.requests.isEmpty { self.scheduleSweep() }
        }
    }

    func respond(_ id: RequestID, _ reply: Reply) { requests.removeValue(forKey: id)?.promise.succeed(reply) }

    func dropRequests() {
        requestSweep?.cancel()
        requestSweep = nil
        let unanswered = requests.sorted { $0.key.rawValue < $1.key.rawValue }
        requests = [:]
        for (_, waiting) in unanswered { waiting.promise.fail(Unanswered()) }
    }

    // MARK: Records

    func respondWithRecords(_ id: RequestID, _ answer: LogAnswer, from: Offset, upTo end: Offset, maxBytes: Int) {
        do {
            var bytes = ByteBuffer()
            let region = try log.locate(
                from: from, upTo: end, maxBytes: maxBytes, minOneBatch: true, nonBlocking: true)
            if try region.read(into: &bytes, nonBlocking: true) == .read { return respond(id, .records(answer, bytes)) }
        } catch ReadError.wouldBlock {
            // Not in memory.
        } catch {
            return refuse(id, answer, .kafkaStorageError, "\(error)")
        }
        readCold(id, answer, from: from, upTo: end, maxBytes: maxBytes)
    }

    private func readCold(_ id: RequestID, _ answer: LogAnswer, from: Offset, upTo end: Offset, maxBytes: Int) {
        let work: ColdLocate<AnyDisk>?
        do {
            work = try log.coldLocate(from: from, upTo: end, maxBytes: maxBytes, minOneBatch: true)
        } catch {
            return refuse(id, answer, .kafkaStorageError, "\(error)")
        }
        let cuts = cutCount
        onPool { () -> Result<ByteBuffer, ReadError> in
            do throws(ReadError) {
                var bytes = ByteBuffer()
                _ = try work?.run().read(into: &bytes, nonBlocking: false)
                return .success(bytes)
            } catch {
                return .failure(error)
            }
        } done: { result in
            switch result {
            case .success(let bytes) where self.isStill(answer.header.epoch, cutCount: cuts):
                self.respond(id, .records(answer, bytes))
            case .success: self.refuse(id, answer, .notLeaderOrFollower, nil)
            case .failure(let error): self.refuse(id, answer, .kafkaStorageError, "\(error)")
            }
        }
    }

    private func refuse(_ id: RequestID, _ answer: LogAnswer, _ code: ErrorCode, _ cause: String?) {
        if let cause { logger.error("metadata log cannot be read", metadata: ["cause": "\(cause)"]) }
        var refusal = answer
        refusal.header.error = code
        respond(id, .answer(.fetch(refusal)))
    }

    // MARK: Snapshots

    private func path(of snapshot: LogPosition) -> String {
        log.folder + "/" + MetadataLog.snapshotName(end: snapshot.offset, epoch: snapshot.epoch)
    }

    func respondWithSnapshot(
        _ id: RequestID, _ header: AnswerHeader, _ snapshot: LogPosition, position: Int64, maxBytes: Int
    ) {
        let (disk, path) = (disk, path(of: snapshot))
        onPool { () -> SnapshotAnswer in
            var answer = SnapshotAnswer(header: header, id: snapshot, size: 0, position: position, bytes: ByteBuffer())
            do throws(DiskError) {
                let file = try disk.open(path, .read)
                defer { file.close() }
                let size = try file.size()
                answer.size = Int64(size)
                guard position < size else {
                    answer.header.error = .positionOutOfRange
                    return answer
                }
                _ = try file.read(into: &answer.bytes, at: Int(position), count: min(maxBytes, size - Int(position)))
            } catch {
                answer.header.error = error.kind == .notFound ? .snapshotNotFound : .kafkaStorageError
            }
            return answer
        } done: { answer in
            self.respond(id, .answer(.fetchSnapshot(answer)))
        }
    }

    func writeSnapshot(_ id: LogPosition, at position: Int64, _ bytes: ByteBuffer) throws {
        if position == 0 { try disk.createDirectories(log.folder) }
        let file = try disk.open(path(of: id) + MetadataLog.partSuffix, .create)
        defer { file.close() }
        if position == 0 { try file.truncate(to: 0) }
        try file.write([bytes], at: Int(position))
    }

    /// The whole snapshot is in the part file, and gets its name if it is sound.
    func installSnapshot(_ id: LogPosition) {
        let (disk, path, folder) = (disk, path(of: id), log.folder)
        onPool { () -> Result<MetadataLog.Snapshot, any Error> in
            Result {
                let part = path + MetadataLog.partSuffix
                guard let bytes = try disk.readAll(part, limit: Int(Int32.max)) else {
                    throw MetadataLogError(description: "\(part) is gone")
                }
                let snapshot = try MetadataLog.read(snapshot: bytes, end: id.offset)
                let file = try disk.open(part, .write)
                defer { file.close() }
                try file.sync()
                try disk.rename(part, to: path)
                try disk.syncDirectory(folder)
                return snapshot
            }
        } done: { result in
            switch result {
            case .success(let snapshot):
                self.installed = (id, snapshot.records)
                self.handle(.snapshotInstalled(id, snapshot.membership))
                // Not taken: this node has come further meanwhile.
                if self.installed?.id == id, !self.isBusy { self.installed = nil }
            case .failure(let error):
                self.logger.error("a fetched metadata snapshot is refused", metadata: ["cause": "\(error)"])
                do {
                    try self.discardSnapshot(id)
                } catch {
                    self.logger.error("a metadata snapshot cannot be removed", metadata: ["cause": "\(error)"])
                }
                self.handle(.snapshotRefused(id))
            }
        }
    }

    func discardSnapshot(_ id: LogPosition) throws { try disk.removeIfPresent(path(of: id) + MetadataLog.partSuffix) }

    /// Writes a snapshot of `image`, which is everything below the high watermark `end`; the core then lets go of the log
    /// before it.
    func takeSnapshot(_ image: MetadataImage, end: Offset, done: @escaping @Sendable () -> Void) {
        isTakingSnapshot = true
        let (id, membership) = identity(of: end)
        let (directory, path, now) = (log.directory, path(of: id), clock.wallTime)
        onPool { () -> Result<Int, any Error> in
            Result {
                let bytes = try MetadataLog.snapshot(image.snapshotRecords(), membership: membership, now: now, epoch: id.epoch)
                try directory.replaceAtomically(path, with: bytes)
                return bytes.readableBytes
            }
        } done: { result in
            self.isTakingSnapshot = false
            switch result {
            case .success(let byteCount):
                self.logger.info("metadata snapshot written", metadata: ["end": "\(id.offset)", "bytes": "\(byteCount)"])
                done()
                self.handle(.snapshotTaken(id))
            case .failure(let error):
                // The log still holds everything: loading is slower until a later snapshot succeeds.
                self.logger.error("metadata snapshot failed", metadata: ["cause": "\(error)"])
            }
        }
    }
}

extension QuorumRequest {
    /// The answer with this header to a request about who leads; `nil` for others.
    fileprivate func refusal(_ header: AnswerHeader) -> QuorumAnswer? {
        switch self {
        case .vote: .vote(header, isGranted: false)
        case .beginEpoch: .beginEpoch(header)
        case .endEpoch: .endEpoch(header)
        case .fetch, .fetchSnapshot, .addVoter, .removeVoter, .updateVoter: nil
        }
    }
}
