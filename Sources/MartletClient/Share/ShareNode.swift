import MartletLogModel
import NIOCore

/// One broker and what it has given out to a share consumer. Requests to it go one at a time; whatever else is to be sent
/// waits for its turn here. Confined to the loop of the ``ShareAcknowledger`` that owns it.
final class ShareNode {
    /// Called with what became of acknowledgements.
    typealias Completion = ([ShareAcknowledgementResult]) -> Void

    /// Acknowledgements on their way, or waiting for their broker to be free, or to be sent again.
    final class Delivery {
        fileprivate var listeners: [Completion] = []

        func listen(_ listener: @escaping Completion) { listeners.append(listener) }
    }

    let id: BrokerID
    var session = ShareSession()
    /// Counts the sessions, so that acknowledgements of a lost one are told from those of its successor.
    var number = 0
    var pending = ShareAcknowledgements()
    /// Records given out in the present session about which nothing was said.
    var heldCount = 0
    /// Topics of the present session; the metadata may have forgotten one whose records are still here.
    var names: [UniversalID: String] = [:]
    /// What is pending goes out alone as soon as the broker is free.
    var tells = false
    var notBefore = NIODeadline.uptimeNanoseconds(0)
    var failureCount = 0
    /// Acknowledgements taken out of `pending` whose fate is not known yet.
    private(set) var deliveries: [Delivery] = []
    private(set) var isBusy = false
    /// What is to be done once the request under way is answered.
    private var afterwards: [() -> Void] = []

    init(_ id: BrokerID) { self.id = id }

    /// Nothing was said that the broker does not know, nor may anything still be said.
    var isSettled: Bool { heldCount <= 0 && pending.isEmpty && deliveries.isEmpty }

    /// A request goes out.
    func occupy() { isBusy = true }

    /// The request is answered; whoever waited goes on.
    func release() {
        isBusy = false
        let next = afterwards
        afterwards = []
        // The first makes the node busy again; the others wait anew.
        for work in next { whenIdle(work) }
    }

    func whenIdle(_ work: @escaping () -> Void) {
        if isBusy { afterwards.append(work) } else { work() }
    }

    /// No request is under way, and no acknowledgements wait to be sent again.
    func whenSettled(_ work: @escaping () -> Void) {
        guard let last = deliveries.last else { return whenIdle(work) }
        last.listen { _ in self.whenSettled(work) }
    }

    /// Notes that acknowledgements are on their way; the result is to be called with what became of them.
    func begin(_ completion: @escaping Completion = { _ in }) -> Completion {
        let delivery = Delivery()
        deliveries.append(delivery)
        return { results in
            self.deliveries.removeAll { $0 === delivery }
            for listener in delivery.listeners { listener(results) }
            completion(results)
        }
    }

    func back(off pauses: Backoff) {
        failureCount += 1
        notBefore = .now() + TimeAmount(pauses.pause(after: failureCount))
    }
}
