struct ModelFigures {
    var steps = 0
    var acknowledged = 0
    var elections = 0
    var truncations = 0
    var restarts = 0
    var uncleanStops = 0
    var powerCuts = 0
    var inSyncChanges = 0
    var handOvers = 0

    static func += (left: inout ModelFigures, right: ModelFigures) {
        left.steps += right.steps
        left.acknowledged += right.acknowledged
        left.elections += right.elections
        left.truncations += right.truncations
        left.restarts += right.restarts
        left.uncleanStops += right.uncleanStops
        left.powerCuts += right.powerCuts
        left.inSyncChanges += right.inSyncChanges
        left.handOvers += right.handOvers
    }
}
