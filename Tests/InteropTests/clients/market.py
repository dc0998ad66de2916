"""Real market data through the broker: replayed by the martlet command, read by kcat and Python clients.

MARKET_DATA names the folder of the data sets; each file comes with its expected.json.
"""

import gzip
import json
import os
import pathlib
import struct
import subprocess
import time

from common import Broker, check, clean_environment, equal, eventually, main, products, run, scenario

PARTITIONS = 4


class Session:
    """One file of messages, read here independently of our own readers."""

    def __init__(self, format, folder, file):
        self.format = format
        base = pathlib.Path(os.environ["MARKET_DATA"]) / folder
        self.path = base / file
        self.expected = json.loads((base / "expected.json").read_text())
        data = gzip.decompress(self.path.read_bytes())
        if format == "itch50":
            self.messages, index = [], 0
            while index < len(data):
                length, = struct.unpack_from(">H", data, index)
                self.messages.append(data[index + 2:index + 2 + length])
                index += 2 + length
        else:
            self.messages = [line.rstrip(b"\r") for line in data.split(b"\n") if line]

    def type_of(self, message):
        return message[:1].decode() if self.format == "itch50" else message.split(b",")[1].decode()

    def verify(self, records):
        """`records`: (partition, offset, key, value). The same messages, once each, in order per key."""
        records = sorted(records)
        equal(len(records), len(self.messages), "number of messages")
        types, by_key = {}, {}
        for partition, offset, key, value in records:
            types[self.type_of(value)] = types.get(self.type_of(value), 0) + 1
            by_key.setdefault(key, []).append((partition, value))
        equal(types, self.expected["types"], "messages per type")
        equal(sum(types.values()), self.expected.get("messages", self.expected.get("rows")), "total")
        for key, found in by_key.items():
            if key is not None:
                equal(len({partition for partition, _ in found}), 1, f"partitions of key {key}")
        # In the file's order per key: walk the file and take from the key's queue.
        queues = {key: iter(value for _, value in found) for key, found in by_key.items()}
        heads = {key: next(queue) for key, queue in queues.items()}
        for number, message in enumerate(self.messages):
            owner = [key for key, head in heads.items() if head == message]
            check(owner, f"message {number} of the file is next of no key")
            heads[owner[0]] = next(queues[owner[0]], None)
        check(all(head is None for head in heads.values()), "nothing is left over")


def itch():
    return Session("itch50", "itch50-aapl-20200130", "aapl_20200130_first10k.itch.gz")


def lobster():
    return Session(
        "lobster", "lobster-amzn-20120621-l5", "AMZN_2012-06-21_34200000_57600000_message_5.csv.gz")


def replay(broker, session, topic, **options):
    return [
        str(products() / "martlet"), "market", "replay", str(session.path), "--format", session.format,
        "--topic", topic, "--codec", "gzip", "--bootstrap", broker.address,
        *[part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]]


def with_kcat(broker, topic):
    """Messages are binary, so lengths frame them: partition, offset, key length, value length, key, value."""
    data = run("kcat", "-b", broker.address, "-C", "-t", topic, "-e", "-q", "-o", "beginning",
               "-f", "%p %o %K %S \\n%k%s\\n")
    records, index = [], 0
    while index < len(data):
        end = data.index(b"\n", index)
        partition, offset, key_length, length = map(int, data[index:end].split())
        index = end + 1
        key = None if key_length < 0 else data[index:index + key_length]
        index += max(0, key_length)
        records.append((partition, offset, key, data[index:index + length]))
        index += length + 1
    return records


def with_confluent(broker, topic, count):
    from confluent_kafka import Consumer, TopicPartition
    client = Consumer({
        "bootstrap.servers": broker.address, "log_level": 0, "group.id": "unused", "fetch.wait.max.ms": 100})
    client.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    records = []

    def more():
        for message in client.consume(10_000, timeout=0.5):
            check(message.error() is None, f"error {message.error()}")
            records.append((message.partition(), message.offset(), message.key(), message.value()))
        return len(records) >= count
    eventually(more, f"{count} messages", seconds=90)
    client.close()
    return records


def with_kafka_python(broker, topic, count):
    from kafka import KafkaConsumer, TopicPartition
    client = KafkaConsumer(bootstrap_servers=broker.address, auto_offset_reset="earliest", fetch_max_wait_ms=100,
                           max_poll_records=5000)
    client.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    records = []

    def more():
        for messages in client.poll(timeout_ms=500).values():
            records.extend((message.partition, message.offset, message.key, message.value) for message in messages)
        return len(records) >= count
    eventually(more, f"{count} messages", seconds=120)
    client.close()
    return records


def whole(session):
    with Broker() as broker:
        topic = broker.create("feed", PARTITIONS, compression_type="gzip")
        subprocess.run(replay(broker, session, topic), check=True, capture_output=True, timeout=180,
                       env=clean_environment())
        session.verify(with_kcat(broker, topic))
        session.verify(with_confluent(broker, topic, len(session.messages)))
        return broker, topic


def killed(session, after_bytes, read):
    """The broker is killed when so much is stored, and started again on its port and data; the replay goes on."""
    with Broker() as broker:
        topic = broker.create("feed", PARTITIONS, compression_type="gzip")
        # Small batches, so that the kill falls in the middle of many.
        with open(broker.folder / "replay", "wb") as output:
            process = subprocess.Popen(
                replay(broker, session, topic, batch_bytes=16384), stdout=output, stderr=output,
                env=clean_environment())
        try:
            kills = 0
            for target in after_bytes:
                end = time.monotonic() + 120
                while stored(broker, topic) < target and process.poll() is None and time.monotonic() < end:
                    time.sleep(0.002)
                if process.poll() is not None:
                    break
                broker.kill()
                kills += 1
                broker.start()
            equal(process.wait(timeout=180), 0, "exit code of the replay")
        finally:
            process.kill()
        check(kills > 0, "the broker was killed in the middle of the replay")
        print(f"killed {kills} times", flush=True)
        session.verify(with_kcat(broker, topic))
        session.verify(read(broker, topic, len(session.messages)))


def stored(broker, topic):
    total = 0
    for partition in range(PARTITIONS):
        for file in (broker.data / f"{topic}-{partition}").glob("*.log"):
            total += file.stat().st_size
    return total


@scenario
def itch_reads_the_same_with_foreign_clients():
    whole(itch())


@scenario
def lobster_reads_the_same_with_foreign_clients():
    whole(lobster())


@scenario
def itch_survives_kill_9():
    killed(itch(), [20_000], with_kafka_python)


@scenario
def lobster_survives_kill_9():
    killed(lobster(), [200_000, 600_000], with_confluent)


if __name__ == "__main__":
    main()
