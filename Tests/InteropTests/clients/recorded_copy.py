"""Transactional copying with confluent-kafka while the daemon is killed with -9 again and again. Everything the clients
did and saw is written down as a history, and the simulator's checker judges it: `simulator check`.

COPY_ROUNDS and COPY_SEED choose how many rounds and which; COPY_HISTORY keeps the history in that file.
"""

import json
import os
import pathlib
import random
import subprocess
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, KafkaException, TopicPartition

from common import Broker, check, clean_environment, eventually, main, products, scenario
from confluent_client import consumer, producer

ROUNDS = int(os.environ.get("COPY_ROUNDS", "12"))
SEED = int(os.environ.get("COPY_SEED", "20260131"))
PARTITIONS = 2
# Longest time under load before a kill.
LOAD_SECONDS = 0.8


class History:
    """Operations in the order of their ends, one JSON object a line."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")
        self.lock = threading.Lock()

    def add(self, process, start, outcome, steps, transaction=False):
        with self.lock:
            self.file.write(
                json.dumps({
                    "process": process, "start": start, "end": time.monotonic_ns(), "outcome": outcome,
                    "transaction": transaction, "steps": steps}) + "\n")

    def end(self):
        with self.lock:
            self.file.write('{"complete":true}\n')
            self.file.close()


def place(topic, partition):
    return f"{topic}-{partition}"


def polled(messages):
    return ["poll"] + [[place(m.topic(), m.partition()), m.offset(), int(m.value())] for m in messages]


class Worker(threading.Thread):
    """A process of the history; starts over after what it cannot handle, as an application does."""

    def __init__(self, history, process):
        super().__init__(daemon=True)
        self.history, self.process = history, process
        self.done = threading.Event()
        self.failures = []
        self.trouble = None

    def run(self):
        while not self.done.is_set():
            try:
                self.life()
            except KafkaException as error:
                self.failures.append(str(error))
                time.sleep(0.05)
            except BaseException as error:
                self.trouble = error
                return

    def end(self, seconds=90):
        self.done.set()
        self.join(seconds)
        check(not self.is_alive(), f"process {self.process} ends")
        if self.trouble:
            raise self.trouble


class Writer(Worker):
    """An idempotent producer; each value an operation."""

    def __init__(self, broker, history, process, topic):
        super().__init__(history, process)
        self.broker, self.topic = broker, topic
        self.sent = 0
        self.draw = random.Random(SEED * 31 + process)
        self.start()

    def life(self):
        client = producer(self.broker, enable_idempotence=True, delivery_timeout_ms=60000)
        while not self.done.is_set():
            for _ in range(self.draw.randint(1, 20)):
                self.send(client, self.sent, self.draw.randrange(PARTITIONS))
                self.sent += 1
            client.poll(self.draw.random() * 0.03)
        check(client.flush(60) == 0, "all values are delivered or given up")

    def send(self, client, value, partition):
        start = time.monotonic_ns()

        def delivered(error, message):
            outcome = "info" if error else "ok"
            offset = None if error else message.offset()
            self.history.add(
                self.process, start, outcome, [["send", place(self.topic, partition), value, offset]])

        client.produce(self.topic, value=str(value).encode(), partition=partition, on_delivery=delivered)


class Copier(Worker):
    """Copies exactly once: the transaction holds the copies and the offsets of what was read."""

    def __init__(self, broker, history, process, source, target, protocol):
        super().__init__(history, process)
        self.broker, self.source, self.target, self.protocol = broker, source, target, protocol
        self.draw = random.Random(SEED * 17 + process)
        self.start()

    def life(self):
        settings = {"group_protocol": "consumer"} if self.protocol == "consumer" else {"session_timeout_ms": 6000}
        reader = consumer(self.broker, group="copier", isolation_level="read_committed", **settings)
        # With its re-bootstrap librdkafka 2.16 keeps asking a broker object it has given up for the group's
        # coordinator, and send_offsets_to_transaction never returns.
        writer = producer(
            self.broker, transactional_id=f"copier-{self.process}", transaction_timeout_ms=30000,
            message_timeout_ms=30000,
            metadata_recovery_strategy="none")
        fresh = ["subscribe", self.source]
        steps = [fresh]

        def changed(_, __):
            steps.append(["rebalanced"])

        try:
            reader.subscribe([self.source], on_assign=changed, on_revoke=changed, on_lost=changed)
            writer.init_transactions(30)
            while not self.done.is_set():
                start = time.monotonic_ns()
                batch = [m for m in reader.consume(self.draw.randint(1, 30), timeout=0.2) if not m.error()]
                mine, steps[:] = list(steps), []
                if batch:
                    self.copy(reader, writer, start, mine, batch)
                elif mine:
                    self.history.add(self.process, start, "ok", mine)
        finally:
            reader.close()

    def copy(self, reader, writer, start, steps, batch):
        """Records one transaction whatever becomes of it; raises when this life is over."""
        sends = []
        outcome = "fail"
        # What was read before the transaction is one step, so that a rewind does not hide it.
        steps.append(polled(batch))
        commits = []
        try:
            writer.begin_transaction()
            for message in batch:
                self.send(writer, sends, int(message.value()))
            positions = [p for p in reader.position(reader.assignment()) if p.offset >= 0]
            writer.send_offsets_to_transaction(positions, reader.consumer_group_metadata(), 30)
            commits = [["commit", "copier", place(p.topic, p.partition), p.offset] for p in positions]
            if self.draw.random() < 0.05:
                writer.abort_transaction(30)
                raise KafkaException("aborted on purpose")
            refused = "fail"
            while True:
                outcome = "info"
                try:
                    writer.commit_transaction(30)
                    outcome = "ok"
                    break
                except KafkaException as error:
                    if error.args[0].retriable():
                        refused = "info"
                        continue
                    if error.args[0].txn_requires_abort():
                        # The commit was refused, at least the last time it was asked for.
                        writer.abort_transaction(30)
                        outcome = refused
                    raise
        finally:
            self.history.add(self.process, start, outcome, steps + sends + commits, transaction=True)

    def send(self, writer, sends, value):
        partition = value % PARTITIONS
        step = ["send", place(self.target, partition), value, None]
        sends.append(step)

        def delivered(error, message):
            if not error:
                step[3] = message.offset()

        writer.produce(self.target, value=str(value).encode(), partition=partition, on_delivery=delivered)


class Reader(Worker):
    """Reads every partition of a topic from the beginning, without a group."""

    def __init__(self, broker, history, process, topic):
        super().__init__(history, process)
        self.broker, self.topic = broker, topic
        self.values = set()
        self.start()

    def life(self):
        client = consumer(self.broker, isolation_level="read_committed")
        client.assign([TopicPartition(self.topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        steps = [["assign", place(self.topic, number), 0] for number in range(PARTITIONS)]
        try:
            while not self.done.is_set():
                start = time.monotonic_ns()
                batch = [m for m in client.consume(500, timeout=0.2) if not m.error()]
                if not batch:
                    continue
                self.history.add(self.process, start, "ok", steps + [polled(batch)])
                steps = []
                self.values.update(int(m.value()) for m in batch)
        finally:
            client.close()


def copy_over_kills(protocol):
    print(f"seed {SEED}, {ROUNDS} rounds, {protocol} groups")
    draw = random.Random(SEED)
    with Broker() as broker:
        path = pathlib.Path(os.environ.get("COPY_HISTORY", broker.folder / "history"))
        history = History(path)
        source = broker.create("source", partitions=PARTITIONS)
        target = broker.create("target", partitions=PARTITIONS)
        readers = [Reader(broker, history, 1, source), Reader(broker, history, 2, target)]
        copiers = [Copier(broker, history, number, source, target, protocol) for number in (3, 4)]
        writers = [Writer(broker, history, 5, source)]
        for _ in range(ROUNDS):
            time.sleep(draw.random() * LOAD_SECONDS)
            broker.kill()
            broker.start()
        for writer in writers:
            writer.end()
        workers = readers + copiers

        def is_copied():
            for worker in workers:
                if worker.trouble:
                    raise worker.trouble
            return readers[0].values and readers[0].values == readers[1].values

        # The writer has got ahead: the copiers are the ones that start over.
        eventually(is_copied, "everything that is read is copied", seconds=120 + 2 * ROUNDS)
        for worker in copiers + readers:
            worker.end()
        history.end()
        restarts = sum(len(copier.failures) for copier in copiers)
        result = subprocess.run(
            [str(products() / "simulator"), "check"], stdin=open(path, "rb"), capture_output=True, timeout=300,
            env=clean_environment())
        print(f"{result.stdout.decode()}{restarts} restarts of the copiers")
        check(result.returncode == 0, f"the checker finds no anomaly: {result.stderr.decode()[-1000:]}")


@scenario
def copy_over_kill_9_classic():
    copy_over_kills("classic")


@scenario
def copy_over_kill_9_consumer():
    copy_over_kills("consumer")


if __name__ == "__main__":
    main()
