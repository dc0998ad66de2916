internal import NIOCore

/// The network between clients and the broker: bytes of one connection stay in order; connections are slow, stall
/// and break each by itself, so requests of one client on two connections overtake each other. What a client sent
/// before it gave a connection up may reach the broker long after.
final class VirtualNetwork {
    private let scheduler: Scheduler
    private let random: SimulationRandom
    let trace: Trace
    private var connections: [Int: VirtualConnection] = [:]
    private var nextID = 1
    /// Opens the broker's end; `nil` while nobody listens.
    var accept: (VirtualConnection) -> VirtualChannel? = { _ in nil }

    init(scheduler: Scheduler, random: SimulationRandom, trace: Trace) {
        self.scheduler = scheduler
        self.random = random
        self.trace = trace
    }

    var inOrder: [VirtualConnection] { connections.sorted { $0.key < $1.key }.map(\.value) }

    /// Nil: connection refused.
    func connect(_ client: String) -> VirtualConnection? {
        let connection = VirtualConnection(id: nextID, client: client, network: self)
        guard let channel = accept(connection) else { return nil }
        nextID += 1
        connections[connection.id] = connection
        connection.attach(channel)
        return connection
    }

    fileprivate func latency() -> Int64 {
        // Mostly a fast network, sometimes a busy one.
        random.chance(95) ? random.nanoseconds(0...1) + 50_000 : random.nanoseconds(1...40)
    }

    fileprivate func at(_ time: Int64, _ body: @escaping () -> Void) { scheduler.at(time, body) }

    fileprivate var now: Int64 { scheduler.now }

    fileprivate func forget(_ connection: VirtualConnection) { connections[connection.id] = nil }

    /// The broker's process is gone.
    func brokerDied() {
        for connection in inOrder { connection.brokerDied() }
    }
}

/// One connection, seen from both ends.
final class VirtualConnection {
    let id: Int
    let client: String
    private let network: VirtualNetwork
    private var channel: VirtualChannel?
    /// The client still holds its end.
    private(set) var isOpen = true
    private var nextToBroker: Int64 = 0
    private var nextToClient: Int64 = 0
    private var stalledUntil: Int64 = 0
    /// See ``ClientLink``.
    var lingers = true
    var received: (ByteBuffer) -> Void = { _ in }
    /// The connection broke or the broker closed it.
    var lost: () -> Void = {}

    fileprivate init(id: Int, client: String, network: VirtualNetwork) {
        self.id = id
        self.client = client
        self.network = network
    }

    fileprivate func attach(_ channel: VirtualChannel) {
        self.channel = channel
        // The channel keeps the connection until it is closed.
        channel.received = { self.sendToClient($0) }
        channel.ended = { self.brokerClosed() }
    }

    private func arrival(_ earliest: inout Int64) -> Int64 {
        let time = max(earliest + 1, max(network.now, stalledUntil) + network.latency())
        earliest = time
        return time
    }

    /// Bytes of the client on their way.
    func send(_ bytes: ByteBuffer) {
        guard isOpen else { return }
        let time = arrival(&nextToBroker)
        network.at(time) {
            guard let channel = self.channel else { return }
            channel.loop.execute { channel.deliver(bytes) }
        }
    }

    private func sendToClient(_ bytes: ByteBuffer) {
        let time = arrival(&nextToClient)
        network.at(time) {
            guard self.isOpen, self.channel != nil else { return }
            self.received(bytes)
        }
    }

    private func brokerClosed() {
        let time = arrival(&nextToClient)
        network.at(time) { self.end(notify: true) }
    }

    /// The client closes: what it has sent still arrives.
    func close() {
        guard isOpen else { return }
        isOpen = false
        let time = arrival(&nextToBroker)
        network.at(time) {
            guard let channel = self.channel else { return }
            channel.loop.execute { channel.peerClosed() }
            self.end(notify: false)
        }
    }

    /// A fault: the connection breaks. What is on its way to the client is lost; what is on its way to the broker
    /// arrives if `delivering`.
    func breakDown(delivering wanted: Bool) {
        let delivering = wanted && lingers
        network.trace.note("break", "#\(id) \(client)\(delivering ? "" : " at once")")
        let wasOpen = isOpen
        isOpen = false
        let channel = self.channel
        if delivering {
            network.at(nextToBroker + 1) {
                guard let channel else { return }
                channel.loop.execute { channel.peerClosed() }
                self.end(notify: false)
            }
        } else {
            self.channel = nil
            channel?.loop.execute { channel?.peerClosed() }
            network.forget(self)
        }
        if wasOpen { lost() }
    }

    /// A fault: nothing arrives on either end before `time`.
    func stall(until time: Int64) {
        stalledUntil = max(stalledUntil, time)
        network.trace.note("stall", "#\(id) \(client) for \((time - network.now) / 1_000_000) ms")
    }

    fileprivate func brokerDied() {
        channel?.abandon()
        channel = nil
        network.forget(self)
        guard isOpen else { return }
        isOpen = false
        // The client learns of it a little later, as from a reset.
        network.at(network.now + network.latency()) { self.lost() }
    }

    private func end(notify: Bool) {
        channel = nil
        network.forget(self)
        guard isOpen else { return }
        isOpen = false
        if notify { lost() }
    }
}
