"""Bad input over raw sockets: a clear error or a closed connection with one log line, memory bounded, and a
well-behaved client unharmed meanwhile. Standard library only."""

import contextlib
import gzip
import os
import random
import resource
import socket
import struct
import threading
import time

import wire
from common import CODECS, Broker, check, equal, eventually, main, scenario

MEBIBYTE = 1 << 20
# What a debug build may take above its resident size before the attack.
MEMORY_ALLOWANCE = 160 * MEBIBYTE
SEED = int(os.environ.get("HOSTILE_SEED", "20260131"))


class GoodClient:
    """Produces and reads metadata on a connection of its own until told to stop; any trouble is an error."""

    def __init__(self, broker):
        self.broker = broker
        broker.create("good")
        self.connection = broker.connect(timeout=20)
        self.stopping = threading.Event()
        self.error = None
        self.count = 0
        self.slowest = 0.0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        # At least one round after the attack is over.
        target = self.count + 2
        if kind is None:
            eventually(lambda: self.error or self.count >= target, "rounds of the good client", seconds=30)
        self.stopping.set()
        self.thread.join(30)
        self.connection.close()
        if kind is None:
            if self.error:
                raise self.error
            check(self.slowest < 15, f"the good client waited {self.slowest:.1f} s at most")

    def _run(self):
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                answer = wire.call(self.connection, wire.produce("good", wire.batch([wire.record(0, b"good")])))
                check(answer is not None, "the good client's connection was closed")
                equal(wire.produce_error(answer), (0, self.count), "the good client's produce")
                self.count += 1
                check(wire.call(self.connection, wire.metadata("good")) is not None, "metadata of the good client")
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.stopping.wait(0.01)
        except Exception as error:
            self.error = error


@contextlib.contextmanager
def attacked(settings=None, allowance=MEMORY_ALLOWANCE):
    """A broker with a good client at work; afterwards it lives, its memory stayed in bounds, the client is well."""
    with Broker(settings) as broker:
        before = broker.resident_bytes()
        with GoodClient(broker):
            yield broker
        check(broker.alive(), "the broker lives")
        grown = broker.peak_bytes() - before
        check(grown < allowance, f"memory grew by {grown // MEBIBYTE} MiB")
        bad = [line for line in broker.log() if "Fatal error" in line or " error " in line or "critical" in line]
        equal(bad, [], "bad input logs no error of the broker's own")


def log_grows_by(broker, before, most):
    grown = len(broker.log()) - before
    check(grown <= most, f"{grown} log lines, at most {most} expected:\n" + "\n".join(broker.log()[-grown:][:20]))


def closes(broker, data, what, lines=1):
    """The broker ends the connection on these bytes, and says so in one line."""
    before = len(broker.log())
    with broker.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        check(wire.is_closed(connection, 15), f"{what}: the connection is closed")
    eventually(lambda: len(broker.log()) > before, f"{what}: a log line", seconds=5)
    log_grows_by(broker, before, lines)


@scenario
def frame_lengths_that_lie():
    with attacked() as broker:
        for length, what in [(-1, "negative"), (-(1 << 31), "most negative"), (0, "zero"), (4, "smaller than a header"),
                             ((1 << 31) - 1, "2 GiB"), (101 * MEBIBYTE, "above the limit")]:
            closes(broker, struct.pack(">i", length) + b"\0" * 32, f"a {what} length")


@scenario
def truncated_requests():
    """Every prefix of good requests, in a frame of the prefix's length: an answer or a closed connection."""
    with attacked() as broker:
        whole = [wire.produce("good", wire.batch([wire.record(0, b"x")])), wire.metadata("good"),
                 wire.request(wire.API_VERSIONS, 3, b"\5test\2" + b"1\0", flexible=True)]
        for frame in whole:
            body = frame[4:]
            for cut in range(0, len(body), 3):
                # Produce cut inside the record data must never be stored: offsets of the good client show it.
                with broker.connect() as connection:
                    connection.sendall(struct.pack(">i", cut) + body[:cut])
                    connection.shutdown(socket.SHUT_WR)
                    check(wire.is_closed(connection, 15), f"closed after {cut} bytes")


@scenario
def half_sent_requests():
    """A client that dies in the middle of a frame leaves nothing behind."""
    with attacked() as broker:
        frame = wire.produce("good", wire.batch([wire.record(0, b"x" * 100_000)]))
        for index in range(200):
            connection = broker.connect()
            connection.sendall(frame[:1 + index * len(frame) // 210])
            if index % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


@scenario
def random_frames():
    with attacked() as broker:
        source = random.Random(SEED)
        before = len(broker.log())
        for index in range(300):
            body = source.randbytes(source.randint(10, 2000))
            if index % 2:
                # A known key and version in front, so that the decoders of bodies are reached.
                key = source.choice([0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 32, 33, 35,
                                     37, 42, 44, 47, 60, 75])
                body = struct.pack(">hhih", key, source.randint(0, 13), index, -1) + body
            with broker.connect() as connection:
                connection.sendall(struct.pack(">i", len(body)) + body)
                connection.shutdown(socket.SHUT_WR)
                check(wire.is_closed(connection, 20), f"frame {index} of seed {SEED}")
        log_grows_by(broker, before, 320)


@scenario
def mutated_requests():
    """Good requests with some bytes changed."""
    with attacked() as broker:
        source = random.Random(SEED + 1)
        broker.create("target")
        whole = [wire.produce("target", wire.batch([wire.record(n, b"value %d" % n) for n in range(5)])),
                 wire.metadata("target"), wire.request(wire.API_VERSIONS, 3, b"\5test\2" + b"1\0", flexible=True)]
        for index in range(400):
            frame = bytearray(source.choice(whole))
            for _ in range(source.randint(1, 4)):
                frame[source.randrange(4, len(frame))] = source.randrange(256)
            with broker.connect() as connection:
                connection.sendall(frame)
                connection.shutdown(socket.SHUT_WR)
                check(wire.is_closed(connection, 30), f"request {index} of seed {SEED + 1}")


@scenario
def counts_that_lie_inside_requests():
    """An array count of two milliards in a small frame allocates nothing."""
    with attacked() as broker:
        huge = struct.pack(">i", 2_000_000_000)
        compact = wire.unsigned_varint(2_000_000_000)
        closes(broker, wire.request(wire.METADATA, 4, huge + b"\1"), "Metadata with a lying count")
        closes(broker, wire.request(wire.METADATA, 9, compact + b"\1\0\0\0", flexible=True), "a lying compact count")
        closes(broker, wire.request(wire.PRODUCE, 3, wire.string(None) + struct.pack(">hi", -1, 100) + huge),
               "Produce with a lying count")
        closes(broker, wire.request(wire.METADATA, 4, struct.pack(">ih", 1, 30000) + b"x"), "a lying string length")
        closes(broker, wire.request(wire.METADATA, 9, b"\1\1\0\0" + wire.unsigned_varint(1 << 40), flexible=True),
               "a lying tag count")


@scenario
def unknown_keys_and_versions():
    with attacked() as broker:
        for key, version in [(4, 0), (500, 0), (-1, 0), (0, 2), (0, 14), (0, 99), (1, 3), (3, 99), (3, -1)]:
            closes(broker, wire.request(key, version, b"\0" * 40), f"key {key} version {version}")


@scenario
def bad_batches_are_refused_with_their_code():
    """Each lie of a batch has its error code, stores nothing, and the connection goes on."""
    bad = {
        "wrong CRC": (2, wire.batch([wire.record(0, b"x")], crc_change=1)),
        "flipped byte": (2, flipped(wire.batch([wire.record(0, b"hello world")]))),
        "length beyond the data": (2, wire.batch([wire.record(0, b"x")], length_change=5)),
        "length short of the data": (2, wire.batch([wire.record(0, b"x")], length_change=-3)),
        "negative length": (2, wire.batch([wire.record(0, b"x")], length_change=-1_000_000)),
        "header cut": (2, wire.batch([wire.record(0, b"x")])[:40]),
        "count above the records": (87, wire.batch([wire.record(0, b"x")], count=5)),
        "count below the records": (87, wire.batch([wire.record(0, b"x"), wire.record(1, b"y")], count=1)),
        "huge count": (87, wire.batch([wire.record(0, b"x")], count=2_000_000_000)),
        "negative count": (87, wire.batch([wire.record(0, b"x")], count=-1, last_delta=0)),
        "no records": (87, wire.batch([], count=0, last_delta=0)),
        "offset delta unequal to the count": (87, wire.batch([wire.record(0, b"x")], count=1, last_delta=7)),
        "record length beyond the batch": (87, wire.batch([wire.varint(100_000) + b"\0\0\0"])),
        "magic 1": (87, wire.batch([wire.record(0, b"x")], magic=1)),
        "magic 9": (2, wire.batch([wire.record(0, b"x")], magic=9)),
        "control batch from a client": (87, wire.batch([wire.record(0, b"x")], attributes=1 << 5)),
        "unknown codec": (76, wire.batch([wire.record(0, b"x")], attributes=6)),
        "gzip that is none": (2, wire.batch(b"this is not gzip", count=1, attributes=1)),
        "lz4 that is none": (damaged("lz4"), wire.batch(b"this is not lz4", count=1, attributes=3)),
        "zstd that is none": (damaged("zstd"), wire.batch(b"this is not zstd", count=1, attributes=4)),
        "snappy that is none": (
            damaged("snappy"), wire.batch(b"\xff\xff\xff\xff\xff this is not snappy", count=1, attributes=2)),
        "gzip cut short": (2, wire.batch(
            gzip.compress(wire.record(0, random.Random(SEED).randbytes(500)))[:200], count=1, attributes=1)),
    }
    with attacked() as broker:
        broker.create("target")
        wrong = []
        with broker.connect() as connection:
            for name, (expected, data) in bad.items():
                answer = wire.call(connection, wire.produce("target", data, version=7))
                check(answer is not None, f"{name}: an answer, not a closed connection")
                found = wire.produce_error(answer)
                if found[0] != expected and not (expected in (2, 87) and found[0] in (2, 87)):
                    wrong.append((name, f"expected {expected}, found {found}"))
                check(found[0] != 0, f"{name} must be refused")
            equal(wrong, [], "codes")
            answer = wire.call(connection, wire.produce("target", wire.batch([wire.record(0, b"good")]), version=7))
            equal(wire.produce_error(answer), (0, 0), "nothing bad was stored, and the connection goes on")
            answer = wire.call(connection, wire.produce("absent-partition", None, version=7, partition=77))
            check(answer is not None, "null records are answered")
            for partition in (77, -1, 1 << 30):
                answer = wire.call(connection, wire.produce(
                    "target", wire.batch([wire.record(0, b"x")]), partition=partition, version=7))
                equal(wire.produce_error(answer)[0], 3, f"partition {partition}")


def damaged(codec):
    """CORRUPT_MESSAGE, or UNSUPPORTED_COMPRESSION_TYPE where the codec's library is not installed."""
    return 2 if codec in CODECS else 76


def flipped(data):
    return data[:-3] + bytes([data[-3] ^ 0x10]) + data[-2:]


@scenario
def a_flush_without_a_free_file_descriptor_waits():
    """Too many open files delay an acknowledgement. They cost neither the record nor the log directory."""
    with Broker() as broker:
        broker.create("target")
        with broker.connect() as connection:
            answer = wire.call(connection, wire.produce("target", wire.batch([wire.record(0, b"x")]), version=7))
            equal(wire.produce_error(answer), (0, 0), "before")
        broker.stop()
        # Made anew with the first flush.
        (broker.data / "target-0" / "leader-epoch-checkpoint").unlink()
        broker.start()
        with broker.connect(timeout=60) as connection:
            wire.fetch(connection, "target", 0, 0)
            soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (3, hard))
            connection.sendall(wire.produce("target", wire.batch([wire.record(0, b"y")]), version=7))
            eventually(lambda: any("flush waits" in line for line in broker.log()), "a log line", seconds=10)
            resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (soft, hard))
            equal(wire.produce_error(wire.reply(connection)), (0, 1), "afterwards")
            equal([line for line in broker.log() if "offline" in line], [], "nothing is offline")
            answer = wire.call(connection, wire.produce("target", wire.batch([wire.record(0, b"z")]), version=7))
            equal(wire.produce_error(answer), (0, 2), "and on")


@scenario
def gzip_bombs():
    """Small batches that unpack to a gigabyte are refused; memory stays small and the log is not flooded."""
    bomb = wire.gzip_bomb(256 * MEBIBYTE)
    nested = gzip.compress(wire.record(0, b"\0" * (900 * 1024)))
    with attacked() as broker:
        broker.create("target")
        bombs = [wire.batch(bomb * 4, count=1, attributes=1), wire.batch(bomb, count=1_000_000, attributes=1),
                 wire.batch(gzip.compress(wire.varint((1 << 30) - 1) + bytes(200 * MEBIBYTE), 9), count=1, attributes=1)]
        connections = [broker.connect(timeout=60) for _ in range(6)]
        for index, connection in enumerate(connections):
            connection.sendall(wire.produce("target", bombs[index % len(bombs)]))
        for connection in connections:
            answer = wire.reply(connection)
            check(answer is not None, "a bomb is answered")
            check(wire.produce_error(answer)[0] in (2, 10, 87), f"a bomb's code: {wire.produce_error(answer)}")
            connection.close()
        with broker.connect() as connection:
            answer = wire.call(connection, wire.produce("target", wire.batch(nested, count=1, attributes=1)))
            equal(wire.produce_error(answer), (0, 0), "well-compressed but honest")


@scenario
def two_thousand_idle_connections():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2000
    if hard != resource.RLIM_INFINITY and hard < wanted + 200:
        wanted = hard - 200
        print(f"the descriptor limit allows only {wanted} connections", flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 200), hard))
    with attacked() as broker:
        before = len(broker.log())
        idle = []
        for _ in range(wanted):
            idle.append(broker.connect())
        check(wire.call(idle[-1], wire.metadata("good")) is not None, "the last of them is served")
        check(wire.call(idle[0], wire.metadata("good")) is not None, "the first of them is served")
        log_grows_by(broker, before, 5)
        for connection in idle:
            connection.close()


@scenario
def slow_loris():
    """Connections that send a byte now and then hold no memory for what they promise, and good clients go on."""
    with attacked() as broker:
        connections = [broker.connect() for _ in range(100)]
        promise = struct.pack(">i", 50 * MEBIBYTE) + struct.pack(">hhi", 0, 3, 1)
        for index in range(len(promise)):
            for connection in connections:
                connection.sendall(promise[index:index + 1])
            time.sleep(0.02)
        grown = broker.peak_bytes()
        check(grown < 500 * MEBIBYTE, f"100 promises of 50 MiB took {grown // MEBIBYTE} MiB")
        for connection in connections:
            connection.close()


@scenario
def slow_loris_is_cut_off():
    """A frame that does not become whole in time ends its connection (30 s)."""
    with attacked() as broker:
        with broker.connect() as connection:
            connection.sendall(struct.pack(">i", 1000) + b"\0\0")
            check(wire.is_closed(connection, 60), "closed in time")


@scenario
def a_flood_of_large_requests_stays_in_the_memory_budget():
    """Sixty connections promise and send 8 MiB each at once; the budget makes them wait, not the broker grow."""
    settings = {"queued.max.request.bytes": str(32 * MEBIBYTE)}
    with attacked(settings, allowance=360 * MEBIBYTE) as broker:
        broker.create("target", max_message_bytes=10 * MEBIBYTE)
        wrong = wire.batch([wire.record(0, b"x")], length_change=8 * MEBIBYTE)
        frame = wire.produce("target", wrong + bytes(8 * MEBIBYTE))
        errors = []

        def send():
            try:
                with broker.connect(timeout=90) as connection:
                    answer = wire.call(connection, frame)
                    check(answer is not None and wire.produce_error(answer)[0] == 2, "refused for its checksum")
            except Exception as error:
                errors.append(error)
        threads = [threading.Thread(target=send, daemon=True) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        equal(errors, [], "errors of the senders")


@scenario
def a_reader_that_never_reads():
    """A client that asks for much and reads nothing makes the broker wait, not grow."""
    with attacked(allowance=260 * MEBIBYTE) as broker:
        broker.create("target", max_message_bytes=10 * MEBIBYTE)
        with broker.connect(timeout=60) as connection:
            for _ in range(8):
                answer = wire.call(connection, wire.produce(
                    "target", wire.batch([wire.record(0, os.urandom(900 * 1024))])))
                equal(wire.produce_error(answer)[0], 0)
        # Fetch v4: everything of one partition, a thousand times, pipelined.
        body = struct.pack(">iiiibi", -1, 100, 1, 50 * MEBIBYTE, 0, 1) + wire.string("target")
        body += struct.pack(">iiqi", 1, 0, 0, 50 * MEBIBYTE)
        frame = wire.request(wire.FETCH, 4, body)
        greedy = [broker.connect() for _ in range(10)]
        for connection in greedy:
            connection.setblocking(False)
            for _ in range(1000):
                try:
                    connection.send(frame)
                except BlockingIOError:
                    break
        time.sleep(2)
        for connection in greedy:
            connection.close()


if __name__ == "__main__":
    main()
