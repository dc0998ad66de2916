"""What ApiVersions says: only served keys, at the ranges of the pinned profile (Kafka 4.3)."""

import struct

from common import Broker, check, equal, main, scenario
from wire import API_VERSIONS, call, request, string, unsigned_varint

# Facts of Kafka 4.3's released ranges for client-facing keys (worked out from its protocol guide).
PROFILE = {
    0: (0, 13), 1: (4, 18), 2: (1, 11), 3: (0, 13), 8: (2, 10), 9: (1, 10), 10: (0, 6), 11: (0, 9), 12: (0, 4),
    13: (0, 5), 14: (0, 5), 15: (0, 6), 16: (0, 5), 17: (0, 1), 18: (0, 4), 19: (2, 7), 20: (1, 6), 21: (0, 2),
    22: (0, 5), 23: (2, 4), 24: (0, 5), 25: (0, 4), 26: (0, 5), 27: (1, 2), 28: (0, 5), 29: (1, 3), 30: (1, 3),
    31: (1, 3), 32: (1, 4), 33: (0, 2), 34: (1, 2), 35: (1, 5), 36: (0, 2), 37: (0, 3), 38: (1, 3), 39: (1, 2),
    40: (1, 2), 41: (1, 3), 42: (0, 2), 43: (0, 2), 44: (0, 1), 45: (0, 1), 46: (0, 0), 47: (0, 0), 55: (0, 2),
    57: (0, 2), 64: (0, 0), 80: (0, 1), 81: (0, 0),
    60: (0, 2), 61: (0, 0), 65: (0, 0), 66: (0, 2), 68: (0, 1), 69: (0, 1), 74: (0, 1), 75: (0, 0),
    76: (1, 1), 77: (1, 1), 78: (1, 2), 79: (1, 2), 83: (0, 0), 84: (0, 0), 85: (0, 1), 86: (0, 0), 87: (0, 1),
    90: (0, 1), 91: (0, 0), 92: (0, 0),
}
# Versions that are not served yet.
NARROWER = {}
# What this release must serve: produce, consume, administer, groups, transactions, share groups.
REQUIRED = [
    0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 35, 37, 42, 44,
    47, 60, 61, 65, 66, 68, 69, 75, 76, 77, 78, 79, 90, 91, 92,
]


def advertised(connection, version):
    flexible = version >= 3
    body = b""
    if flexible:
        body = unsigned_varint(5) + b"test" + unsigned_varint(2) + b"1" + b"\0"
    answer = call(connection, request(API_VERSIONS, version, body, flexible=flexible))
    check(answer is not None, f"version {version} is answered")
    code, = struct.unpack_from(">h", answer)
    equal(code, 0, f"error of version {version}")
    ranges, index = {}, 2
    if flexible:
        count, index = answer[index] - 1, index + 1
        check(count < 127, "a count of one byte")
    else:
        count, = struct.unpack_from(">i", answer, index)
        index += 4
    for _ in range(count):
        key, low, high = struct.unpack_from(">hhh", answer, index)
        index += 7 if flexible else 6
        ranges[key] = (low, high)
    return ranges


@scenario
def ranges_are_those_of_the_pinned_profile():
    with Broker() as broker, broker.connect() as connection:
        for version in range(5):
            ranges = advertised(connection, version)
            for key, found in ranges.items():
                check(key in PROFILE, f"key {key} is one that clients may see")
                equal(found, NARROWER.get(key, PROFILE[key]), f"range of key {key}")
            missing = [key for key in REQUIRED if key not in ranges]
            equal(missing, [], "required keys that are absent")
            equal(ranges[0], (0, 13), "Produce keeps 0 for librdkafka before 2.11.1")


@scenario
def an_unknown_version_is_answered_in_version_0():
    with Broker() as broker, broker.connect() as connection:
        for version in (5, 99, 32767):
            answer = call(connection, request(API_VERSIONS, version, b"\0", flexible=True))
            check(answer is not None, f"version {version} is answered")
            code, count = struct.unpack_from(">hi", answer)
            equal(code, 35, "UNSUPPORTED_VERSION")
            keys = {struct.unpack_from(">hhh", answer, 6 + 6 * index) for index in range(count)}
            equal(len(answer), 6 + 6 * count, "nothing but version 0")
            check((18, 0, 4) in keys, f"the range of ApiVersions is there: {keys}")
        check(0 in advertised(connection, 4), "the connection goes on")


@scenario
def a_bad_software_name_is_refused():
    with Broker() as broker, broker.connect() as connection:
        body = unsigned_varint(6) + b"te st" + unsigned_varint(2) + b"1" + b"\0"
        answer = call(connection, request(API_VERSIONS, 3, body, flexible=True))
        equal(struct.unpack_from(">h", answer)[0], 42, "INVALID_REQUEST")


@scenario
def only_served_keys_are_answered():
    """Every advertised key answers its lowest and highest version or at least goes on; others end the connection."""
    with Broker() as broker:
        with broker.connect() as connection:
            served = advertised(connection, 0)
        for key in range(0, 100):
            if key in served:
                continue
            with broker.connect(timeout=10) as connection:
                check(call(connection, request(key, 0, b"\0" * 64)) is None, f"key {key} ends the connection")
        for key, (low, high) in served.items():
            if key == API_VERSIONS:
                continue
            with broker.connect(timeout=10) as connection:
                check(call(connection, request(key, high + 1, b"\0" * 64)) is None, f"key {key} above its range")


if __name__ == "__main__":
    main()
