"""Random kill -9 of the real daemon under load: nothing acknowledged is lost, nothing is there twice, nothing that
a reader saw is gone. Standard library only.

CRASH_ROUNDS and CRASH_SEED choose how many rounds and which.
"""

import os
import random
import struct
import threading
import time

import wire
from common import Broker, check, equal, main, scenario

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "20"))
SEED = int(os.environ.get("CRASH_SEED", "20260131"))
WRITERS = 3
PARTITIONS = 2
# Longest time under load before a kill.
LOAD_SECONDS = 0.25
# Every so many rounds the daemon ends by SIGTERM instead.
CLEAN_EVERY = 10
NOT_LEADER = 6


class Writer:
    """An idempotent producer: one batch in flight, sent again with its sequence until it is acknowledged."""

    def __init__(self, broker, topic, number):
        self.broker, self.topic, self.number = broker, topic, number
        self.source = random.Random(SEED * 1000 + number)
        self.partition = number % PARTITIONS
        self.producer = self.epoch = None
        self.sequence = 0
        # Value and offset of everything acknowledged, in order.
        self.acknowledged = []
        self.pending = None
        self.trouble = None
        self.stopping = threading.Event()
        self.thread = None

    def begin(self):
        self.stopping.clear()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def end(self):
        self.stopping.set()
        self.thread.join(60)
        check(not self.thread.is_alive(), f"writer {self.number} ends")
        if self.trouble:
            raise self.trouble

    def _run(self):
        try:
            with self.broker.connect(timeout=60) as connection:
                if self.producer is None:
                    answer = wire.call(connection, wire.init_producer())
                    if answer is None:
                        return
                    code, self.producer, self.epoch = struct.unpack_from(">hqh", answer, 4)
                    if code != 0:
                        self.producer = None
                        raise AssertionError(f"InitProducerId answers {code}")
                while not self.stopping.is_set() or self.pending:
                    if not self.step(connection):
                        return
        except OSError:
            return
        except Exception as error:
            self.trouble = error

    def step(self, connection):
        """Sends one batch; false when the broker is gone."""
        if self.pending is None:
            first = self.sequence
            self.pending = [
                b"%d/%d/" % (self.number, first + index) + b"x" * self.source.randint(0, 400)
                for index in range(self.source.randint(1, 20))]
        data = wire.batch(
            [wire.record(index, value) for index, value in enumerate(self.pending)], producer=self.producer,
            epoch=self.epoch, sequence=self.sequence)
        answer = wire.call(connection, wire.produce(self.topic, data, partition=self.partition, version=7))
        if answer is None:
            return False
        code, offset = wire.produce_error(answer)
        if code == NOT_LEADER:
            # The broker is stopping; the batch goes on after its restart.
            return False
        equal(code, 0, f"writer {self.number} at sequence {self.sequence}")
        self.acknowledged += [(offset + index, value) for index, value in enumerate(self.pending)]
        self.sequence += len(self.pending)
        self.pending = None
        return True


class Reader:
    """Follows one partition and keeps what it saw."""

    def __init__(self, broker, topic, partition):
        self.broker, self.topic, self.partition = broker, topic, partition
        self.seen = []
        self.trouble = None
        self.thread = None

    def begin(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def end(self):
        self.thread.join(60)
        if self.trouble:
            raise self.trouble

    def _run(self):
        try:
            with self.broker.connect(timeout=60) as connection:
                while True:
                    found = wire.fetch(connection, self.topic, self.partition, len(self.seen), allowed=[NOT_LEADER])
                    if found is None:
                        return
                    for offset, value in found:
                        equal(offset, len(self.seen), "offsets have no gap")
                        self.seen.append(value)
        except OSError:
            return
        except Exception as error:
            self.trouble = error


def read_all(broker, topic, partition):
    records = []
    with broker.connect(timeout=60) as connection:
        _, end = wire.offsets(connection, topic, partition)
        while len(records) < end:
            found = wire.fetch(connection, topic, partition, len(records))
            check(found, f"offset {len(records)} below the end {end} is read")
            for offset, value in found:
                equal(offset, len(records), "offsets have no gap")
                records.append(value)
    return records


def rounds(count, **settings):
    source = random.Random(SEED)
    print(f"seed {SEED}, {count} rounds", flush=True)
    with Broker() as broker:
        topic = broker.create("crashed", PARTITIONS, segment_bytes=1 << 20, **settings)
        writers = [Writer(broker, topic, number) for number in range(WRITERS)]
        readers = [Reader(broker, topic, partition) for partition in range(PARTITIONS)]
        for number in range(count):
            for worker in writers + readers:
                worker.begin()
            time.sleep(source.uniform(0, LOAD_SECONDS))
            if number % CLEAN_EVERY == CLEAN_EVERY - 1:
                broker.stop()
            else:
                broker.kill()
            for writer in writers:
                writer.end()
            for reader in readers:
                reader.end()
            broker.start()
            for reader in readers:
                # What was seen before the crash is there after it, at its place.
                with broker.connect(timeout=60) as connection:
                    _, end = wire.offsets(connection, topic, reader.partition)
                check(end >= len(reader.seen), f"round {number}: {len(reader.seen)} seen, {end} there")
        for writer in writers:
            # Once more, until the batch in flight is acknowledged.
            writer.begin()
            writer.end()
        for partition in range(PARTITIONS):
            there = read_all(broker, topic, partition)
            equal(there[:len(readers[partition].seen)], readers[partition].seen, "what the reader saw")
            written = [writer for writer in writers if writer.partition == partition]
            for writer in written:
                for offset, value in writer.acknowledged:
                    equal(there[offset], value, f"acknowledged offset {offset} of partition {partition}")
                mine = [value for value in there if value.startswith(b"%d/" % writer.number)]
                equal(mine, [value for _, value in writer.acknowledged], f"writer {writer.number}: order, once each")
            equal(len(there), sum(len(writer.acknowledged) for writer in written), "nothing is invented")
        total = sum(len(writer.acknowledged) for writer in writers)
        print(f"{total} records acknowledged over {count} rounds, none lost, none twice", flush=True)


@scenario
def nothing_acknowledged_is_lost():
    rounds(ROUNDS)


@scenario
def nothing_acknowledged_is_lost_by_a_kill_in_relaxed_mode():
    """The page cache survives the process: relaxed topics lose nothing by kill -9 either."""
    rounds(max(5, ROUNDS // 5), martlet_durability="relaxed")


if __name__ == "__main__":
    main()
