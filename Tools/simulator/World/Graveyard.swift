/// What a dead process leaves behind. In debug builds NIO stops the program when a promise goes away unkept, and a
/// process that dies keeps none of its promises: there the dead are kept until the program ends. Release builds let
/// them go.
enum Graveyard {
    static func bury(_ remains: Any) {
        #if DEBUG
            // SAFETY: leaked on purpose; nothing takes it back.
            _ = Unmanaged.passRetained(Coffin(remains))
        #endif
    }

    private final class Coffin {
        private let remains: Any
        init(_ remains: Any) { self.remains = remains }
    }
}
