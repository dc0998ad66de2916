"""As much of the Kafka protocol as the benchmarks need: a blocking client and record batches."""

import gzip, socket, struct, time


def text(value):
    return struct.pack(">h", -1) if value is None else struct.pack(">h", len(value)) + value.encode()


class Client:
    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, key, version, body, flexible=False):
        self.send(key, version, body, flexible)
        return self.answer(flexible)

    def send(self, key, version, body, flexible=False):
        frame = struct.pack(">hhi", key, version, 1) + text("bench") + (b"\0" if flexible else b"") + body
        self.socket.sendall(struct.pack(">i", len(frame)) + frame)

    def answer(self, flexible=False):
        """The body of the next response."""
        return self.receive(struct.unpack(">i", self.receive(4))[0])[5 if flexible else 4:]

    def receive(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise SystemExit("the broker closed the connection")
            data += piece
        return data

    def create(self, topic, partitions, **configs):
        body = struct.pack(">i", 1) + text(topic) + struct.pack(">ihi", partitions, 1, 0)
        body += struct.pack(">i", len(configs))
        for name, value in configs.items():
            body += text(name.replace("__", ".")) + text(value)
        answer = self.ask(19, 4, body + struct.pack(">ib", 60000, 0))
        error = struct.unpack(">h", answer[10 + len(topic):12 + len(topic)])[0]
        if error:
            raise SystemExit(f"creating {topic}: error {error} {answer}")

    def produce(self, topic, partition, batch, acks=-1, transaction=None):
        body = text(transaction) + struct.pack(">hii", acks, 30000, 1) + text(topic)
        body += struct.pack(">iii", 1, partition, len(batch)) + batch
        answer = self.ask(0, 7, body)
        return struct.unpack(">h", answer[14 + len(topic):16 + len(topic)])[0]

    def close(self):
        self.socket.close()


def crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(value):
    raw = (value << 1) ^ (value >> 63)
    out = b""
    while raw >= 0x80:
        out += bytes([raw & 0x7F | 0x80])
        raw >>= 7
    return out + bytes([raw])


def batch_of(values, codec=0, checksum=True, keys=None, producer=(-1, -1, -1), transactional=False):
    """`producer` is id, epoch and sequence of the first record."""
    records = b""
    for index, value in enumerate(values):
        key = varint(-1) if keys is None else varint(len(keys[index])) + keys[index]
        body = b"\0" + varint(0) + varint(index) + key + varint(len(value)) + value + varint(0)
        records += varint(len(body)) + body
    if codec == 1:
        records = gzip.compress(records, 6)
    now = int(time.time() * 1000)
    attributes = codec | (16 if transactional else 0)
    tail = struct.pack(
        ">hiqqqhii", attributes, len(values) - 1, now, now, *producer, len(values)) + records
    crc = crc32c(tail) if checksum else 0
    return struct.pack(">qiibI", 0, 9 + len(tail), -1, 2, crc) + tail
