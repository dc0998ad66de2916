import NIOCore

/// What ``ITCHSessionGenerator`` is to make.
public struct ITCHSessionPlan: Hashable, Sendable {
    /// Same seed and plan, same bytes, on every machine and release.
    public var seed: UInt64
    /// Messages in all, with directory and closing messages.
    public var messageCount: Int
    public var symbolCount: Int
    /// Mean rate in the session's own time; real arrivals come in bursts, so do these.
    public var messagesPerSecond: Int

    /// Bound of ``symbolCount``: about the number of symbols of a real day.
    public static let symbolCountLimit = 8_192
    /// Longest session in seconds: it has to end before midnight.
    public static let sessionSecondsLimit = 50_000

    public init(
        seed: UInt64 = 1, messageCount: Int = 100_000, symbolCount: Int = 8, messagesPerSecond: Int = 20_000
    ) {
        self.seed = seed
        self.messageCount = messageCount
        self.symbolCount = symbolCount
        self.messagesPerSecond = messagesPerSecond
    }

    /// Messages a session of this plan needs for opening and closing alone.
    public var frameMessageCount: Int { 3 + symbolCount * 3 + 3 }

    func check() throws(MarketDataError) {
        func refuse(_ cause: String) -> MarketDataError { MarketDataError(.badArgument, cause: cause) }
        guard (1...Self.symbolCountLimit).contains(symbolCount) else {
            throw refuse("symbol count \(symbolCount) is not in 1 to \(Self.symbolCountLimit)")
        }
        guard messageCount >= frameMessageCount else {
            throw refuse(
                "message count \(messageCount) is below the \(frameMessageCount) that open and close the session"
            )
        }
        guard messagesPerSecond >= 1, messageCount / messagesPerSecond <= Self.sessionSecondsLimit else {
            throw refuse(
                "\(messageCount) messages at \(messagesPerSecond) per second last beyond \(Self.sessionSecondsLimit) seconds"
            )
        }
    }
}

/// Generator of the project's own random numbers (SplitMix64, Steele, Lea, Flood 2014): unlike the standard
/// library's helpers its draws are the same in every release.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// A number in `0..<limit`; the modulo bias is below 2^-40 for every limit used here.
    mutating func below(_ limit: Int) -> Int { Int(next() % UInt64(limit)) }
}

/// A made-up trading session as ITCH 5.0 messages: deterministic for a seed, and correct in what a book
/// builder relies on. References are always live when used, sizes never go below zero, displayed executions
/// hit the oldest order at the best price, the book never crosses, time never goes back.
public struct ITCHSessionGenerator: Sequence, IteratorProtocol {
    /// 09:30 New York, when the continuous market opens.
    static let openNanoseconds: Int64 = 34_200_000_000_000
    /// Resting orders per side and symbol; more are deleted before new ones come.
    static let sideOrderLimit = 256
    /// Below this many orders a side only grows, so that there always is a market.
    static let sideOrderFloor = 12
    /// One cent in 1/10,000 of a dollar.
    static let tick: Int64 = 100

    let plan: ITCHSessionPlan
    private var random: SeededGenerator
    private var books: [GeneratedBook]
    private var queue: [ITCHMessage] = []
    private var queueIndex = 0
    private var emitted = 0
    private var nanoseconds: Int64
    private var nextReference: UInt64 = 1
    private var nextMatch: UInt64 = 1
    private var closed = false

    public init(_ plan: ITCHSessionPlan) throws(MarketDataError) {
        try plan.check()
        self.plan = plan
        random = SeededGenerator(seed: plan.seed)
        nanoseconds = Self.openNanoseconds - Int64(plan.frameMessageCount) * 1_000
        books = []
        for index in 0..<plan.symbolCount {
            let cents = 2_000 + random.below(40_000)
            books.append(
                GeneratedBook(
                    symbol: Self.symbol(index), locate: UInt16(index + 1), middle: Int64(cents) * Self.tick))
        }
        open()
    }

    /// Symbols of a session, in order of their locate numbers 1, 2, 3…: four letters, all different.
    public static func symbol(_ index: Int) -> String {
        let known = ["MART", "SWFT", "WING", "NEST", "REED", "DOVE", "KITE", "TERN"]
        if index < known.count { return known[index] }
        let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        let rest = index - known.count
        return String(["Q", letters[rest / 676 % 26], letters[rest / 26 % 26], letters[rest % 26]])
    }

    public mutating func next() -> ITCHMessage? {
        if queueIndex == queue.count {
            guard !closed else { return nil }
            queue.removeAll(keepingCapacity: true)
            queueIndex = 0
            if emitted >= plan.messageCount - 3 { close() } else { act() }
        }
        let message = queue[queueIndex]
        queueIndex += 1
        emitted += 1
        return message
    }

    // MARK: Opening and closing

    private mutating func open() {
        systemEvent("O")
        systemEvent("S")
        for book in books {
            var body = MessageBody(.stockDirectory, locate: book.locate, nanoseconds: nanoseconds)
            body.text(book.symbol, 8)
            body.text("QN", 2)
            body.integer(UInt32(100))
            body.text("NC", 2)
            body.text("Z", 2)
            body.text("PNN1N", 5)
            body.integer(UInt32(0))
            body.text("N", 1)
            put(body)
            var action = MessageBody(.tradingAction, locate: book.locate, nanoseconds: nanoseconds)
            action.text(book.symbol, 8)
            action.text("T ", 2)
            action.text("", 4)
            put(action)
            var restriction = MessageBody(
                .shortSaleRestriction, locate: book.locate, nanoseconds: nanoseconds)
            restriction.text(book.symbol, 8)
            restriction.text("0", 1)
            put(restriction)
        }
        systemEvent("Q")
    }

    private mutating func close() {
        systemEvent("M")
        systemEvent("E")
        systemEvent("C")
        closed = true
    }

    private mutating func systemEvent(_ code: String) {
        var body = MessageBody(.systemEvent, locate: 0, nanoseconds: nanoseconds)
        body.text(code, 1)
        put(body)
    }

    private mutating func put(_ body: MessageBody) {
        queue.append(body.message)
        nanoseconds += 1_000
    }

    // MARK: Trading

    /// One event of the market: one message, or a sweep of several. A sweep that the message count would
    /// cut short does not happen.
    private mutating func act() {
        let meanGap = 1_000_000_000 / plan.messagesPerSecond
        // Nine gaps in ten are short and one is long: bursts with the wanted mean.
        nanoseconds += Int64(
            random.below(10) == 0
                ? random.below(meanGap * 16 + 1) : random.below(Swift.max(1, meanGap * 4 / 9) + 1))
        // The smaller of two draws: the first symbols trade most, as on a real day.
        let which = Swift.min(random.below(books.count), random.below(books.count))
        let side: Side = random.below(2) == 0 ? .buy : .sell
        books[which].drift(random.below(16))
        let depth = books[which].count(side)
        if depth < Self.sideOrderFloor { return add(which, side) }
        if depth >= Self.sideOrderLimit { return delete(which, side) }
        switch random.below(100) {
        case 0..<45: add(which, side)
        case 45..<80: delete(which, side)
        case 80..<88: execute(which, side)
        case 88..<91: cancel(which, side)
        case 91..<95: replace(which, side)
        case 95..<97: executeWithPrice(which, side)
        case _: hiddenTrade(which, side)
        }
    }

    private mutating func body(_ type: ITCHMessageType, _ which: Int) -> MessageBody {
        MessageBody(type, locate: books[which].locate, nanoseconds: nanoseconds)
    }

    private mutating func reference() -> UInt64 {
        // Gaps, since real references are shared with symbols that a stream may not carry.
        nextReference += UInt64(1 + random.below(7))
        return nextReference
    }

    private mutating func match() -> UInt64 {
        nextMatch += 1
        return nextMatch
    }

    private mutating func orderSize() -> UInt32 {
        random.below(4) == 0 ? UInt32(1 + random.below(99)) : UInt32(100 * (1 + random.below(8)))
    }

    private mutating func add(_ which: Int, _ side: Side) {
        let order = GeneratedOrder(
            reference: reference(),
            price: books[which].quote(side, distance: 1 + random.below(6) * random.below(6)),
            shares: orderSize())
        books[which].insert(order, side)
        let attributed = random.below(24) == 0
        var body = body(attributed ? .addOrderAttributed : .addOrder, which)
        body.integer(order.reference)
        body.integer(side.rawValue)
        body.integer(order.shares)
        body.text(books[which].symbol, 8)
        body.integer(UInt32(order.price))
        if attributed { body.text(["MRTL", "NSDQ", "WREN"][random.below(3)], 4) }
        queue.append(body.message)
    }

    private mutating func delete(_ which: Int, _ side: Side) {
        let order = books[which].remove(side, at: random.below(books[which].count(side)))
        var body = body(.delete, which)
        body.integer(order.reference)
        queue.append(body.message)
    }

    private mutating func cancel(_ which: Int, _ side: Side) {
        let index = random.below(books[which].count(side))
        let shares = books[which].order(side, at: index).shares
        guard shares > 1 else { return delete(which, side) }
        let removed = UInt32(1 + random.below(Int(shares) - 1))
        let order = books[which].reduce(side, at: index, by: removed)
        var body = body(.cancel, which)
        body.integer(order.reference)
        body.integer(removed)
        queue.append(body.message)
    }

    private mutating func replace(_ which: Int, _ side: Side) {
        let former = books[which].remove(side, at: random.below(books[which].count(side)))
        let order = GeneratedOrder(
            reference: reference(), price: books[which].quote(side, distance: 1 + random.below(5)),
            shares: orderSize())
        books[which].insert(order, side)
        var body = body(.replace, which)
        body.integer(former.reference)
        body.integer(order.reference)
        body.integer(order.shares)
        body.integer(UInt32(order.price))
        queue.append(body.message)
    }

    /// An incoming order takes from the head of the book, up to three resting orders at one time.
    private mutating func execute(_ which: Int, _ side: Side) {
        var wanted = orderSize()
        let roomLeft = plan.messageCount - 3 - emitted
        for _ in 0..<Swift.min(3, roomLeft) where wanted > 0 && books[which].count(side) > 1 {
            let head = books[which].count(side) - 1
            let taken = Swift.min(wanted, books[which].order(side, at: head).shares)
            let order = books[which].reduce(side, at: head, by: taken)
            wanted -= taken
            var body = body(.executed, which)
            body.integer(order.reference)
            body.integer(taken)
            body.integer(match())
            queue.append(body.message)
        }
    }

    private mutating func executeWithPrice(_ which: Int, _ side: Side) {
        let head = books[which].count(side) - 1
        let best = books[which].order(side, at: head)
        let taken = Swift.min(orderSize(), best.shares)
        _ = books[which].reduce(side, at: head, by: taken)
        var body = body(.executedWithPrice, which)
        body.integer(best.reference)
        body.integer(taken)
        body.integer(match())
        body.text(random.below(8) == 0 ? "N" : "Y", 1)
        body.integer(UInt32(best.price))
        queue.append(body.message)
    }

    private mutating func hiddenTrade(_ which: Int, _ side: Side) {
        var body = body(.trade, which)
        body.integer(UInt64(0))
        body.integer(Side.buy.rawValue)
        body.integer(orderSize())
        body.text(books[which].symbol, 8)
        body.integer(UInt32(books[which].quote(side, distance: 0)))
        body.integer(match())
        queue.append(body.message)
    }
}

/// Bytes of one message in the making.
private struct MessageBody {
    private var buffer: ByteBuffer

    init(_ type: ITCHMessageType, locate: UInt16, nanoseconds: Int64) {
        buffer = ByteBufferAllocator().buffer(capacity: 64)
        buffer.writeInteger(type.rawValue)
        buffer.writeInteger(locate)
        buffer.writeInteger(UInt16(0))
        buffer.writeInteger(UInt16(truncatingIfNeeded: nanoseconds >> 32))
        buffer.writeInteger(UInt32(truncatingIfNeeded: nanoseconds))
    }

    mutating func integer(_ value: some FixedWidthInteger) { buffer.writeInteger(value) }

    /// Text, left-justified and padded with spaces to `width`.
    mutating func text(_ text: String, _ width: Int) {
        buffer.writeString(text)
        buffer.writeRepeatingByte(0x20, count: width - text.utf8.count)
    }

    var message: ITCHMessage {
        let type = buffer.getInteger(at: 0, as: UInt8.self).map(ITCHMessageType.init(rawValue:))
        precondition(
            type?.byteCount == buffer.readableBytes,
            "generated \(buffer.readableBytes) bytes for type \(type?.description ?? "?")")
        return ITCHMessage(unchecked: buffer)
    }
}
