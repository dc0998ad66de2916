"""Kafka frames by hand, for the tests that a well-behaved client library cannot send. Standard library only."""

import gzip
import socket
import struct
import time

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS, CREATE_TOPICS, INIT_PRODUCER_ID = 0, 1, 2, 3, 18, 19, 22


def crc32c(data):
    """CRC-32C by its table; polynomial 0x1EDC6F41, reflected."""
    if not _table:
        for index in range(256):
            value = index
            for _ in range(8):
                value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
            _table.append(value)
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


_table = []


def varint(number):
    """Zigzag."""
    return unsigned_varint((number << 1) ^ (number >> 63) if number < 0 else number << 1)


def unsigned_varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def string(text):
    return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text)) + text.encode()


def request(key, version, body, correlation=1, flexible=False):
    """A frame with its length."""
    frame = struct.pack(">hhi", key, version, correlation) + string("hostile") + (b"\0" if flexible else b"") + body
    return struct.pack(">i", len(frame)) + frame


def record(offset_delta, value, key=None, timestamp_delta=0):
    body = b"\0" + varint(timestamp_delta) + varint(offset_delta)
    body += varint(-1) if key is None else varint(len(key)) + key
    body += varint(-1) if value is None else varint(len(value)) + value
    body += varint(0)
    return varint(len(body)) + body


def batch(records, count=None, last_delta=None, attributes=0, magic=2, length_change=0, crc_change=0, producer=-1,
          epoch=-1, sequence=-1, base_offset=0, timestamp=None):
    """One batch of the encoded `records` (list of bytes, or the bytes after the header); lies where told to."""
    body = b"".join(records) if isinstance(records, list) else records
    count = len(records) if count is None else count
    last_delta = count - 1 if last_delta is None else last_delta
    timestamp = int(time.time() * 1000) if timestamp is None else timestamp
    covered = struct.pack(
        ">hiqqqhii", attributes, last_delta, timestamp, timestamp, producer, epoch, sequence, count) + body
    crc = crc32c(covered) ^ crc_change
    return struct.pack(">qiibI", base_offset, 9 + len(covered) + length_change, -1, magic, crc) + covered


def produce(topic, records, partition=0, acks=-1, version=3, correlation=1):
    """A Produce request of one partition; `records` are the bytes of the batches, or None."""
    data = struct.pack(">i", -1) if records is None else struct.pack(">i", len(records)) + records
    body = string(None) + struct.pack(">hi", acks, 20000)
    body += struct.pack(">i", 1) + string(topic) + struct.pack(">ii", 1, partition) + data
    return request(PRODUCE, version, body, correlation)


def produce_error(reply):
    """Error code and base offset of the one partition in a Produce v3 response (after the correlation id)."""
    index = 4
    count, = struct.unpack_from(">h", reply, index)
    index += 2 + count + 4
    _, code, offset = struct.unpack_from(">ihq", reply, index)
    return code, offset


def metadata(topic=None, version=4):
    names = struct.pack(">i", -1) if topic is None else struct.pack(">i", 1) + string(topic)
    return request(METADATA, version, names + (b"\1" if version >= 4 else b""))


def create_topic(topic, partitions, configs):
    """CreateTopics v2 with one topic of one replica."""
    body = struct.pack(">i", 1) + string(topic) + struct.pack(">ihii", partitions, 1, 0, len(configs))
    for key, value in configs.items():
        body += string(key) + string(value)
    return request(CREATE_TOPICS, 2, body + struct.pack(">i?", 20000, False))


def create_topic_error(reply):
    """The error code of the one topic in a CreateTopics v2 response."""
    count, = struct.unpack_from(">h", reply, 8)
    return struct.unpack_from(">h", reply, 10 + count)[0]


def init_producer():
    """InitProducerId v0 without a transactional id; the response is throttle time, error, id, epoch."""
    return request(INIT_PRODUCER_ID, 0, string(None) + struct.pack(">i", 60000))


def offsets(connection, topic, partition):
    """Error-free earliest and latest offset; ListOffsets v1."""
    found = []
    for stamp in (-2, -1):
        body = struct.pack(">ii", -1, 1) + string(topic) + struct.pack(">iiq", 1, partition, stamp)
        answer = call(connection, request(LIST_OFFSETS, 1, body))
        if answer is None:
            raise ConnectionResetError("the broker closed the connection")
        index = 4 + 2 + len(topic) + 4
        _, code, _, offset = struct.unpack_from(">ihqq", answer, index)
        if code:
            raise AssertionError(f"ListOffsets answers {code}")
        found.append(offset)
    return found


def fetch(connection, topic, partition, offset, most=1 << 20, wait=50, allowed=()):
    """(offset, value) of the records from `offset` on, uncompressed batches only. Fetch v4.

    None when the connection was closed or the error is one of `allowed`.
    """
    body = struct.pack(">iiiibi", -1, wait, 1, most, 0, 1) + string(topic)
    body += struct.pack(">iiqi", 1, partition, offset, most)
    answer = call(connection, request(FETCH, 4, body))
    if answer is None:
        return None
    index = 4 + 4 + 2 + len(topic) + 4
    _, code, _, _, aborted = struct.unpack_from(">ihqqi", answer, index)
    index += 26 + 16 * max(0, aborted)
    if code in allowed:
        return None
    if code:
        raise AssertionError(f"Fetch of offset {offset} answers {code}")
    length, = struct.unpack_from(">i", answer, index)
    data = answer[index + 4:index + 4 + max(0, length)]
    return [entry for entry in batch_records(data) if entry[0] >= offset]


def batch_records(data):
    """(offset, value) of each record of uncompressed batches; checks each CRC."""
    found, start = [], 0
    while start + 61 <= len(data):
        base, length = struct.unpack_from(">qi", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        crc, = struct.unpack_from(">I", data, start + 17)
        if crc32c(data[start + 21:end]) != crc:
            raise AssertionError(f"the batch at offset {base} has a wrong CRC")
        count, = struct.unpack_from(">i", data, start + 57)
        index = start + 61
        for _ in range(count):
            size, index = read_varint(data, index)
            after = index + size
            _, index = read_varint(data, index + 1)
            delta, index = read_varint(data, index)
            key, index = read_varint(data, index)
            size, index = read_varint(data, index + max(0, key))
            found.append((base + delta, None if size < 0 else data[index:index + size]))
            index = after
        start = end
    return found


def read_varint(data, index):
    number = shift = 0
    while True:
        byte = data[index]
        index += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), index


def gzip_bomb(unpacked_bytes):
    return gzip.compress(bytes(unpacked_bytes), 9)


def exact(connection, count):
    """Reads `count` bytes; None when the other side closed."""
    data = b""
    while len(data) < count:
        try:
            more = connection.recv(count - len(data))
        except ConnectionResetError:
            return None
        if not more:
            return None
        data += more
    return data


def reply(connection):
    """The next frame after its correlation id, or None when the connection was closed."""
    head = exact(connection, 4)
    if head is None:
        return None
    frame = exact(connection, struct.unpack(">i", head)[0])
    return None if frame is None else frame[4:]


def call(connection, frame):
    connection.sendall(frame)
    return reply(connection)


def is_closed(connection, seconds):
    """Whether the other side closes within the time; what it sends before is thrown away."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
        return True
    except (ConnectionResetError, BrokenPipeError):
        return True
    except (socket.timeout, TimeoutError):
        return False
