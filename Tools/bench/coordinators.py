"""Groups, transactions and compaction. There is no C program that does this work: the rows have targets of their own."""

import re, statistics, struct, threading, time, uuid

from wire import Client, batch_of, text

TOPIC = "work"


def commit_body(group, partitions, offset):
    """OffsetCommit 5 of a consumer outside of a group's membership."""
    body = text(group) + struct.pack(">i", -1) + text("") + struct.pack(">i", 1) + text(TOPIC)
    body += struct.pack(">i", partitions)
    for partition in range(partitions):
        body += struct.pack(">iqh", partition, offset, -1)
    return body


def check_commit(answer):
    partitions = struct.unpack(">i", answer[10 + len(TOPIC):14 + len(TOPIC)])[0]
    for index in range(partitions):
        error = struct.unpack(">h", answer[18 + len(TOPIC) + 6 * index:20 + len(TOPIC) + 6 * index])[0]
        if error:
            raise SystemExit(f"OffsetCommit answered error {error}")


def coordinator(client, name, kind=0):
    """Waits until the coordinator of a group (kind 0) or transactional id (1) has loaded."""
    while True:
        answer = client.ask(10, 1, text(name) + struct.pack(">b", kind))
        error = struct.unpack(">h", answer[4:6])[0]
        if error == 0:
            return
        if error not in (14, 15):
            raise SystemExit(f"FindCoordinator answered error {error}")
        time.sleep(0.01)


def first_commit(client, group):
    """Until the coordinator has loaded, commits are refused with 14 or 16."""
    while True:
        answer = client.ask(8, 5, commit_body(group, 1, 0))
        error = struct.unpack(">h", answer[-2:])[0]
        if error == 0:
            return
        if error not in (14, 15, 16):
            raise SystemExit(f"OffsetCommit answered error {error}")
        time.sleep(0.01)


def in_parallel(count, body):
    """Runs body(index) on `count` threads; the seconds it took."""
    failures = []

    def run(index):
        try:
            body(index)
        except BaseException as error:  # a SystemExit of a thread is nobody's otherwise
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{failures[0]}")
    return time.monotonic() - begin


def suite_groups(bench):
    print("Groups: one partition of __consumer_offsets, fsynced")
    settings = ["--set", "offsets.topic.num.partitions=1", "--set", "group.initial.rebalance.delay.ms=300"]
    rates, loads, rebalances, rebalance_cpu, heartbeats, heartbeat_cpu = [], [], [], [], [], []
    for _ in range(bench.options.rounds):
        server = served(bench, settings)
        rates.append(commit_rate(server, bench.options.seconds))
        server.stop()
        loads.append(load_time(bench, settings))
        server = served(bench, settings)
        wall, cpu = classic_rebalance(server)
        rebalances.append(wall * 1000)
        rebalance_cpu.append(cpu * 1000)
        wall, cpu = consumer_rebalance(server)
        heartbeats.append(wall * 1000)
        heartbeat_cpu.append(cpu * 1000)
        server.stop()
    bench.row("offset commits, 8 clients, 1000 offsets each", "/s", rates, target=50_000, lower_is_better=False)
    bench.row("load of 1 M offsets, from process start", "ms", loads, target=1000)
    bench.row("classic rebalance, 100 members × 1000 partitions", "ms", rebalances)
    bench.row("the same, broker CPU", "ms", rebalance_cpu, target=500)
    bench.row("consumer protocol, 100 members join, 1000 partitions", "ms", heartbeats)
    bench.row("the same, broker CPU", "ms", heartbeat_cpu, target=500)


def served(bench, settings, directory=None):
    """A broker with the topic, whose group coordinator is there."""
    server = bench.martletd(*settings, directory=directory)
    client = Client(server.address)
    client.create(TOPIC, 1000)
    coordinator(client, "g")
    first_commit(client, "g")
    client.close()
    return server


def commit_rate(server, seconds):
    counts = [0] * 8
    end = time.monotonic() + seconds

    def commit(index):
        client = Client(server.address)
        body = commit_body(f"rate-{index}", 1000, 42)
        while time.monotonic() < end:
            check_commit(client.ask(8, 5, body))
            counts[index] += 1000
        client.close()

    took = in_parallel(8, commit)
    return sum(counts) / took


def load_time(bench, settings):
    """Milliseconds from the start of a broker whose one offsets partition has a million offsets to the first answer."""
    directory = bench.fresh()
    server = served(bench, settings, directory)

    def commit(index):
        client = Client(server.address)
        for group in range(125):
            check_commit(client.ask(8, 5, commit_body(f"load-{index}-{group}", 1000, 7)))
        client.close()

    in_parallel(8, commit)
    server.stop(keep=True)
    server = bench.martletd(*settings, directory=directory)
    client = Client(server.address)
    body = text("load-7-124") + struct.pack(">i", 1) + text(TOPIC) + struct.pack(">ii", 1, 999)
    while True:
        answer = client.ask(9, 3, body)  # OffsetFetch 3
        error = struct.unpack(">h", answer[-2:])[0]
        if error == 0:
            break
        if error not in (14, 16):
            raise SystemExit(f"OffsetFetch answered error {error}")
        time.sleep(0.005)
    took = time.monotonic() - server.started
    offset = struct.unpack(">q", answer[18 + len(TOPIC):26 + len(TOPIC)])[0]
    if offset != 7:
        raise SystemExit(f"offset {offset} instead of 7: {answer}")
    client.close()
    server.stop()
    return took * 1000


def join(member):
    """JoinGroup 3."""
    return (text("classic") + struct.pack(">ii", 30000, 30000) + text(member) + text("consumer")
            + struct.pack(">i", 1) + text("range") + struct.pack(">i", 18 + len(TOPIC)) + struct.pack(">hi", 0, 1)
            + text(TOPIC) + struct.pack(">i", 6) + b"client")


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, form):
        value = struct.unpack_from(">" + form, self.data, self.at)[0]
        self.at += struct.calcsize(">" + form)
        return value

    def text(self):
        length = self.number("h")
        self.at += max(0, length)
        return self.data[self.at - max(0, length):self.at].decode()

    def bytes(self):
        length = self.number("i")
        self.at += length
        return self.data[self.at - length:self.at]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def compact(self):
        length = self.varint() - 1
        self.at += max(0, length)
        return None if length < 0 else self.data[self.at - length:self.at].decode()


def classic_rebalance(server):
    """100 members that have joined join again; from the first request to the last assignment: wall, broker CPU."""
    clients = [Client(server.address) for _ in range(100)]
    members = [""] * 100

    def round_of_joins():
        for client, member in zip(clients, members):
            client.send(11, 3, join(member))
        leader, generation, everybody = None, 0, []
        for index, client in enumerate(clients):
            answer = Reader(client.answer())
            answer.number("i")
            error, generation = answer.number("h"), answer.number("i")
            if error:
                raise SystemExit(f"JoinGroup answered error {error}")
            answer.text()
            first, members[index] = answer.text(), answer.text()
            if first == members[index]:
                leader = index
                everybody = [(answer.text(), answer.bytes())[0] for _ in range(answer.number("i"))]
        if len(everybody) != 100:
            raise SystemExit(f"{len(everybody)} members of 100 are in the generation")
        for index, client in enumerate(clients):
            assignments = b""
            if index == leader:
                for number, member in enumerate(everybody):
                    owned = struct.pack(">hi", 0, 1) + text(TOPIC) + struct.pack(">i", 10)
                    owned += b"".join(struct.pack(">i", number * 10 + offset) for offset in range(10))
                    owned += struct.pack(">i", -1)
                    assignments += text(member) + struct.pack(">i", len(owned)) + owned
            client.send(14, 2, text("classic") + struct.pack(">i", generation) + text(members[index])
                        + struct.pack(">i", 100 if index == leader else 0) + assignments)
        for client in clients:
            answer = Reader(client.answer())
            answer.number("i")
            error = answer.number("h")
            if error or len(answer.bytes()) < 40:
                raise SystemExit(f"SyncGroup answered error {error}")

    round_of_joins()
    before, begin = server.cpu_seconds(), time.monotonic()
    round_of_joins()
    figures = time.monotonic() - begin, server.cpu_seconds() - before
    for client in clients:
        client.close()
    return figures


def compact(value):
    return b"\0" if value is None else bytes([len(value) + 1]) + value.encode()


def consumer_rebalance(server):
    """100 members of the consumer protocol (KIP-848) join; until each has its partitions and confirmed them."""
    clients = [Client(server.address) for _ in range(100)]
    members = [str(uuid.uuid4()) for _ in clients]
    epochs, owned = [0] * 100, [b""] * 100
    before, begin = server.cpu_seconds(), time.monotonic()
    while True:
        for index, client in enumerate(clients):
            body = compact("modern") + compact(members[index]) + struct.pack(">i", epochs[index]) + b"\0\0"
            body += struct.pack(">i", 30000) + b"\2" + compact(TOPIC) + compact(None) + compact("uniform")
            body += (owned[index] or b"\1") + b"\0"
            client.send(68, 1, body, flexible=True)
        for index, client in enumerate(clients):
            answer = Reader(client.answer(flexible=True))
            answer.number("i")
            error = answer.number("h")
            cause = answer.compact()
            if error:
                raise SystemExit(f"ConsumerGroupHeartbeat answered error {error}: {cause}")
            answer.compact()
            epochs[index] = answer.number("i")
            answer.number("i")
            if answer.number("b") >= 0:
                start = answer.at
                for _ in range(answer.varint() - 1):
                    answer.at += 16
                    count = answer.varint() - 1
                    answer.at += 4 * count
                    answer.varint()
                owned[index] = answer.data[start:answer.at]
        sizes = [len(part) for part in owned]
        if len(set(epochs)) == 1 and min(sizes) == max(sizes) and min(sizes) > 40:
            break
        if time.monotonic() - begin > 30:
            raise SystemExit(f"the group has not settled in 30 s: epochs {sorted(set(epochs))}")
    figures = time.monotonic() - begin, server.cpu_seconds() - before
    for client in clients:
        client.close()
    return figures


def suite_transactions(bench):
    print("Transactions: 100 records of 100 bytes on one partition, fsynced, one after the other (TV1 requests)")
    medians, tails = [], []
    for _ in range(bench.options.rounds):
        server = bench.martletd()
        client = Client(server.address)
        client.create(TOPIC, 1)
        coordinator(client, "copy", 1)
        took = sorted(transactions(client, 200 * bench.options.seconds))
        medians.append(statistics.median(took) * 1000)
        tails.append(took[len(took) * 99 // 100] * 1000)
        server.stop()
    bench.row("transaction of 100 records, p50", "ms", medians, target=5)
    bench.row("transaction of 100 records, p99", "ms", tails)


def transactions(client, count):
    """Seconds of each: AddPartitionsToTxn, Produce, EndTxn."""
    while True:
        answer = Reader(client.ask(22, 1, text("copy") + struct.pack(">i", 60000)))
        answer.number("i")
        error, producer, epoch = answer.number("h"), answer.number("q"), answer.number("h")
        if error == 0:
            break
        if error not in (14, 15, 16, 51):
            raise SystemExit(f"InitProducerId answered error {error}")
        time.sleep(0.01)
    identity = text("copy") + struct.pack(">qh", producer, epoch)
    values = [b"x" * 100] * 100
    batches = [batch_of(values, producer=(producer, epoch, 100 * number), transactional=True) for number in range(count)]
    took = []
    for batch in batches:
        begin = time.monotonic()
        while True:
            answer = client.ask(24, 1, identity + struct.pack(">i", 1) + text(TOPIC) + struct.pack(">ii", 1, 0))
            error = struct.unpack(">h", answer[-2:])[0]
            if error == 0:
                break
            if error != 51:  # the markers of the one before are on their way
                raise SystemExit(f"AddPartitionsToTxn answered error {error}")
        error = client.produce(TOPIC, 0, batch, transaction="copy")
        if error:
            raise SystemExit(f"Produce answered error {error}")
        error = struct.unpack(">h", client.ask(26, 1, identity + b"\1")[4:6])[0]
        if error:
            raise SystemExit(f"EndTxn answered error {error}")
        took.append(time.monotonic() - begin)
    return took


def suite_compaction(bench):
    print("Compaction: records of 256 bytes, 20,000 keys, 16 MiB segments; one thread")
    rates = []
    path = bench.work / "keyed.batch"
    for _ in range(bench.options.rounds):
        server = bench.martletd("--set", "log.cleaner.backoff.ms=3000")
        client = Client(server.address)
        client.create(TOPIC, 1, cleanup__policy="compact", martlet__durability="relaxed", segment__bytes=str(16 << 20),
                      min__cleanable__dirty__ratio="0.01")
        for part in range(20):
            keys = [f"key-{part}-{number}".encode() for number in range(1000)]
            path.write_bytes(batch_of([b"v" * 256] * 1000, keys=keys, checksum=False))
            bench.load(server, "produce", topic=TOPIC, partitions=1, connections=1, in_flight=4, acks=1,
                       batch_file=path, bytes=20_000_000)
        end = time.monotonic() + 60
        before = milliseconds = 0
        while before < 300_000_000:
            time.sleep(0.2)
            log = open(server.log.name, errors="replace").read()
            passes = [line for line in log.splitlines() if " compacted" in line]
            before = sum(int(re.search(r"before=(\d+)", line)[1]) for line in passes)
            milliseconds = sum(int(re.search(r"milliseconds=(\d+)", line)[1]) for line in passes)
            if time.monotonic() > end:
                raise SystemExit(f"only {before} bytes were compacted in a minute; see {server.log.name}")
        rates.append(before / 1e6 / (milliseconds / 1000))
        client.close()
        server.stop()
    bench.row("compaction, input", "MB/s", rates, target=150, lower_is_better=False)


SUITES = {"groups": suite_groups, "transactions": suite_transactions, "compaction": suite_compaction}
