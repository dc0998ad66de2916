// swift-tools-version: 6.3
import PackageDescription

// Warnings in our own targets fail Tools/test and CI, never the build of somebody who embeds us.
let warnings: [SwiftSetting] =
    Context.environment["MARTLET_WARNINGS_AS_ERRORS"] == "1" ? [.treatAllWarnings(as: .error)] : []

/// Settings of every Swift target.
let relaxed: [SwiftSetting] =
    [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("InternalImportsByDefault"),
        .enableUpcomingFeature("MemberImportVisibility"),
        .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    ] + warnings

/// `relaxed` plus strict memory safety. RecordBatch, Storage, Transport and the executables speak to C
/// (zlib, system calls) in nearly every function: there each call would carry the same `unsafe` mark and
/// the marks would hide the few that matter, so those targets use `relaxed` and `// SAFETY:` comments.
let house: [SwiftSetting] = relaxed + [.strictMemorySafety()]

let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let lifecycle: Target.Dependency = .product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let lifecycleSignals: Target.Dependency = .product(name: "UnixSignals", package: "swift-service-lifecycle")
let argumentParser: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let orderedCollections: Target.Dependency = .product(name: "OrderedCollections", package: "swift-collections")
let hashTrees: Target.Dependency = .product(name: "HashTreeCollections", package: "swift-collections")
let deque: Target.Dependency = .product(name: "DequeModule", package: "swift-collections")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")

let package = Package(
    name: "martlet",
    products: [
        .library(name: "MartletClient", targets: ["MartletClient"]),
        .library(name: "MartletBroker", targets: ["MartletBroker"]),
        .library(name: "MartletMarketData", targets: ["MartletMarketData"]),
        .executable(name: "martletd", targets: ["martletd"]),
        .executable(name: "martlet", targets: ["martlet"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: [
        // C: the checksum instruction, zlib, and the few system interfaces the Glibc module leaves out.
        .target(name: "CMartletChecksum"),
        .target(name: "CMartletPlatform"),
        .systemLibrary(name: "CMartletZlib", pkgConfig: "zlib", providers: [.apt(["libz-dev"])]),

        // L0: vocabulary.
        .target(
            name: "MartletLogModel", dependencies: ["CMartletPlatform"], exclude: ["README.md"], swiftSettings: house),

        // L1: formats.
        .target(
            name: "MartletRecordBatch",
            dependencies: ["MartletLogModel", "CMartletChecksum", "CMartletZlib", "CMartletPlatform", nioCore],
            exclude: ["README.md"], swiftSettings: relaxed),
        .target(
            name: "MartletKafkaProtocol",
            dependencies: ["MartletLogModel", nioCore],
            exclude: ["README.md"], swiftSettings: house),

        // L2: cores.
        .target(
            name: "MartletReplication",
            dependencies: ["MartletLogModel", deque],
            exclude: ["README.md"], swiftSettings: house),
        .target(
            name: "MartletMetadataQuorum",
            dependencies: ["MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", nioCore, deque],
            exclude: ["README.md"], swiftSettings: house),
        .target(
            name: "MartletController",
            dependencies: ["MartletLogModel", "MartletKafkaProtocol", nioCore, orderedCollections, hashTrees],
            exclude: ["README.md"], swiftSettings: house),
        .target(
            name: "MartletCoordinators",
            dependencies: ["MartletLogModel", "MartletKafkaProtocol", nioCore, orderedCollections],
            exclude: ["README.md"], swiftSettings: house),

        // L3: engines.
        .target(
            name: "MartletStorage",
            dependencies: ["MartletLogModel", "MartletRecordBatch", "CMartletPlatform", nioCore],
            exclude: ["README.md"], swiftSettings: relaxed),
        .target(
            name: "MartletTransport",
            dependencies: [
                "MartletLogModel", "MartletKafkaProtocol", "CMartletPlatform", nioCore, nioPosix, logging, deque,
            ],
            exclude: ["README.md"], swiftSettings: relaxed),

        // L4: assemblies.
        .target(
            name: "MartletBroker",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletReplication",
                "MartletMetadataQuorum", "MartletController", "MartletCoordinators", "MartletStorage", "MartletTransport",
                "CMartletPlatform", nioCore, nioPosix, logging, lifecycle, deque, orderedCollections,
            ],
            exclude: ["README.md"], swiftSettings: relaxed),
        .target(
            name: "MartletClient",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletTransport",
                nioCore, nioPosix, logging, lifecycle, deque, orderedCollections,
            ],
            exclude: ["README.md"], swiftSettings: house),

        // L5: consumers of the log.
        .target(
            name: "MartletMarketData",
            dependencies: ["MartletLogModel", "MartletClient", "CMartletZlib", "CMartletPlatform", nioCore],
            exclude: ["README.md"], swiftSettings: relaxed),

        // Tools.
        .executableTarget(
            name: "martletd",
            dependencies: [
                "MartletLogModel", "MartletBroker", "CMartletPlatform", argumentParser, logging, lifecycle,
                lifecycleSignals,
            ],
            path: "Tools/martletd", exclude: ["README.md"], swiftSettings: relaxed),
        .executableTarget(
            name: "martlet",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletStorage",
                "MartletBroker", "MartletClient", "MartletMarketData", "CMartletPlatform",
                argumentParser, logging, lifecycle, lifecycleSignals, histogram, nioCore,
            ],
            path: "Tools/martlet", exclude: ["README.md"], swiftSettings: relaxed),
        .target(name: "ProtogenCore", path: "Tools/protogen/Core", swiftSettings: house),
        .executableTarget(
            name: "protogen", dependencies: ["ProtogenCore"],
            path: "Tools/protogen/Main", swiftSettings: relaxed),
        .target(
            name: "MartletSimulatorKit",
            dependencies: ["MartletLogModel", "MartletRecordBatch", "MartletStorage", nioCore],
            path: "Tools/simulator/Kit", exclude: ["README.md"], swiftSettings: relaxed),
        .target(
            name: "MartletSimulation",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletStorage", "MartletTransport",
                "MartletBroker", "MartletSimulatorKit", "MartletChecker", nioCore, nioPosix, logging,
            ],
            path: "Tools/simulator/World", swiftSettings: relaxed),
        .executableTarget(
            name: "simulator",
            dependencies: ["MartletLogModel", "MartletChecker", "MartletSimulation", argumentParser],
            path: "Tools/simulator/Main", swiftSettings: relaxed),
        .target(name: "MartletChecker", path: "Tools/simulator/Checker", swiftSettings: house),
        .executableTarget(
            name: "example-produce", dependencies: ["MartletClient"],
            path: "Tools/examples/Produce", swiftSettings: relaxed),
        .executableTarget(
            name: "example-consume", dependencies: ["MartletClient"],
            path: "Tools/examples/Consume", swiftSettings: relaxed),
        .executableTarget(
            name: "example-copy", dependencies: ["MartletClient"],
            path: "Tools/examples/Copy", swiftSettings: relaxed),

        // Tests.
        .target(
            name: "MartletTestSupport",
            dependencies: ["MartletLogModel", "CMartletPlatform", nioCore],
            path: "Tests/Support", swiftSettings: relaxed),
        .target(name: "CMartletAllocationCounter", path: "Tests/AllocationCounter"),
        .testTarget(
            name: "MartletLogModelTests", dependencies: ["MartletLogModel"], swiftSettings: relaxed),
        .testTarget(
            name: "MartletRecordBatchTests",
            dependencies: ["MartletLogModel", "MartletRecordBatch", "CMartletChecksum", "MartletTestSupport", nioCore],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletKafkaProtocolTests",
            dependencies: [
                "MartletLogModel", "MartletKafkaProtocol", "ProtogenCore", "MartletTestSupport",
                "CMartletAllocationCounter", nioCore,
            ],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletReplicationTests",
            dependencies: ["MartletLogModel", "MartletKafkaProtocol", "MartletReplication", "MartletController"],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletMetadataQuorumTests",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletMetadataQuorum",
                "MartletTestSupport", nioCore,
            ],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletControllerTests",
            dependencies: ["MartletLogModel", "MartletKafkaProtocol", "MartletController", "MartletTestSupport", nioCore],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletCoordinatorsTests",
            dependencies: ["MartletLogModel", "MartletKafkaProtocol", "MartletCoordinators", "MartletTestSupport", nioCore],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletStorageTests",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletStorage", "MartletSimulatorKit",
                "MartletTestSupport", "CMartletPlatform", "CMartletAllocationCounter", nioCore,
            ],
            exclude: ["Allocations"], swiftSettings: relaxed),
        .testTarget(
            name: "MartletTransportTests",
            dependencies: [
                "MartletTransport", nioCore, .product(name: "NIOEmbedded", package: "swift-nio"), logging,
            ],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletBrokerTests",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletReplication",
                "MartletMetadataQuorum", "MartletController", "MartletStorage", "MartletTransport", "MartletBroker",
                "MartletClient", "MartletSimulatorKit", "MartletTestSupport", "CMartletAllocationCounter",
                nioCore, nioPosix,
                .product(name: "NIOEmbedded", package: "swift-nio"), logging,
            ],
            exclude: ["Fixtures"], swiftSettings: relaxed),
        .testTarget(
            name: "MartletClientTests",
            dependencies: [
                "MartletLogModel", "MartletRecordBatch", "MartletKafkaProtocol", "MartletClient", "MartletBroker",
                "MartletTestSupport", nioCore, nioPosix, logging, deque,
            ],
            swiftSettings: relaxed),
        .testTarget(
            name: "MartletMarketDataTests",
            dependencies: ["MartletLogModel", "MartletMarketData", "MartletTestSupport", nioCore],
            swiftSettings: relaxed),
        .testTarget(
            name: "ProcessTests",
            dependencies: [
                "MartletLogModel", "MartletClient", "MartletMarketData", "MartletChecker", "MartletTestSupport",
                "CMartletPlatform", nioCore, nioPosix, argumentParser, "martletd", "martlet", "example-produce", "example-consume",
                "example-copy",
            ],
            swiftSettings: relaxed),
        .testTarget(
            name: "InteropTests",
            dependencies: [
                "MartletLogModel", "MartletClient", "MartletTestSupport", "martletd", "martlet", "simulator", nioCore,
            ],
            exclude: ["clients", "FINDINGS.md"], swiftSettings: relaxed),
        .testTarget(
            name: "SimulationTests", dependencies: ["MartletLogModel", "MartletChecker", "MartletSimulation"], swiftSettings: relaxed),
        .testTarget(
            name: "TidyTests", dependencies: ["MartletTestSupport", "ProtogenCore"], swiftSettings: relaxed),
    ]
)
