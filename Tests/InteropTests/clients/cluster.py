"""Three brokers as processes, killed or restarted one after the other, under confluent-kafka. Histories are judged by the
simulator's checker, as those of one broker are.

CLUSTER_ROUNDS and CLUSTER_SEED choose how many rounds and which.
"""

import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import NewTopic

from common import Broker, check, clean_environment, closing, equal, eventually, main, products, scenario
from confluent_client import admin, consumer, producer
from recorded_copy import PARTITIONS, Copier, History, Reader, Writer

ROUNDS = int(os.environ.get("CLUSTER_ROUNDS", "6"))
SEED = int(os.environ.get("CLUSTER_SEED", "20260131"))
NODES = (1, 2, 3)
CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Node(Broker):
    """A martletd process of a cluster, at the same address for life."""

    def __init__(self, number, ports):
        self.number, self.ports = number, ports
        super().__init__(arguments=[
            "--node-id", str(number), "--cluster-id", CLUSTER_ID, "--advertise", f"127.0.0.1:{ports[number]}",
            "--voters", ",".join(f"{each}@127.0.0.1:{port}" for each, port in ports.items()), "--new-cluster"])

    def start(self):
        self.address = f"127.0.0.1:{self.ports[self.number]}"
        super().start()
        # A node that has lost its disk does not found the cluster anew.
        if "--new-cluster" in self.arguments:
            self.arguments.remove("--new-cluster")


class Cluster:
    """Three nodes; to a client what one broker is."""

    def __init__(self):
        ports = dict(zip(NODES, free_ports(len(NODES))))
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="martlet-cluster-"))
        self.address = ",".join(f"127.0.0.1:{port}" for port in ports.values())
        self.nodes = {number: Node(number, ports) for number in NODES}
        self.api = admin(self)
        eventually(lambda: self.brokers() == set(NODES), "the brokers know each other")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for node in self.nodes.values():
            node.__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)

    def brokers(self):
        try:
            return set(self.api.list_topics(timeout=5).brokers)
        except KafkaException:
            return set()

    def create(self, topic, partitions=1):
        """A topic with a replica on each node, of which two must have what is acknowledged."""
        request = NewTopic(topic, partitions, len(NODES), config={"min.insync.replicas": "2"})
        self.api.create_topics([request])[topic].result(30)
        self.whole()
        return topic

    def is_whole(self):
        try:
            topics = self.api.list_topics(timeout=5).topics.values()
        except KafkaException:
            return False
        return topics and all(
            part.leader > 0 and len(part.isrs) == len(NODES) for topic in topics for part in topic.partitions.values())

    def whole(self):
        """Every partition has a leader, and all its replicas are in sync."""
        eventually(self.is_whole, "all replicas are in sync", seconds=60)


def judge(path):
    result = subprocess.run(
        [str(products() / "simulator"), "check"], stdin=open(path, "rb"), capture_output=True, timeout=300,
        env=clean_environment())
    print(result.stdout.decode())
    check(result.returncode == 0, f"the checker finds no anomaly: {result.stderr.decode()[-1000:]}")


def kill_again_and_again(cluster):
    draw = random.Random(SEED)
    time.sleep(1)
    for _ in range(ROUNDS):
        node = cluster.nodes[draw.choice(NODES)]
        node.kill()
        time.sleep(draw.random() * 2)
        node.start()
        cluster.whole()
        time.sleep(draw.random())


def raise_trouble(workers):
    for worker in workers:
        if worker.trouble:
            raise worker.trouble


@scenario
def writes_over_kill_9_of_brokers():
    """Leaders and controllers are killed under idempotent producers: nothing is lost, doubled or moved."""
    print(f"seed {SEED}, {ROUNDS} rounds")
    with Cluster() as cluster:
        path = cluster.folder / "history"
        history = History(path)
        topics = [cluster.create(name, PARTITIONS) for name in ("one", "two")]
        readers = [Reader(cluster, history, 1 + index, topic) for index, topic in enumerate(topics)]
        writers = [Writer(cluster, history, 3 + index, topic) for index, topic in enumerate(topics)]
        kill_again_and_again(cluster)
        for writer in writers:
            writer.end()
        check(not any(writer.failures for writer in writers), "no producer has to start over")

        def is_read():
            raise_trouble(readers)
            return all(len(reader.values) == writer.sent for reader, writer in zip(readers, writers))

        eventually(is_read, "everything is read", seconds=120)
        for reader in readers:
            reader.end()
        history.end()
        judge(path)


@scenario
def transactions_over_kill_9_of_brokers():
    """Leaders, controllers and coordinators are killed in the middle of exactly-once copying."""
    print(f"seed {SEED}, {ROUNDS} rounds")
    with Cluster() as cluster:
        path = cluster.folder / "history"
        history = History(path)
        source = cluster.create("source", PARTITIONS)
        target = cluster.create("target", PARTITIONS)
        readers = [Reader(cluster, history, 1, source), Reader(cluster, history, 2, target)]
        copiers = [Copier(cluster, history, number, source, target, "classic") for number in (3, 4)]
        writers = [Writer(cluster, history, 5, source)]
        kill_again_and_again(cluster)
        for writer in writers:
            writer.end()

        def is_copied():
            raise_trouble(readers + copiers)
            return readers[0].values and readers[0].values == readers[1].values

        eventually(is_copied, "everything that is read is copied", seconds=120 + 10 * ROUNDS)
        for worker in copiers + readers:
            worker.end()
        history.end()
        judge(path)


@scenario
def a_rolling_restart_is_not_noticed():
    """Every node is stopped and started; no message is refused, lost, doubled or out of order."""
    with Cluster() as cluster:
        topic = cluster.create("rolling", PARTITIONS)
        client = producer(cluster, enable_idempotence=True)
        errors, offsets, sent = [], {}, 0

        def send(seconds):
            nonlocal sent
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                def delivered(error, message, value=sent):
                    if error:
                        errors.append(str(error))
                    else:
                        offsets[value] = (message.partition(), message.offset())

                client.produce(topic, value=b"%d" % sent, partition=sent % PARTITIONS, on_delivery=delivered)
                sent += 1
                client.poll(0.002)

        send(1)
        for node in cluster.nodes.values():
            node.stop()
            send(1)
            node.start()
            cluster.whole()
            send(0.5)
        equal(client.flush(60), 0, "messages without an outcome")
        equal(errors, [], "errors of the producer")
        with closing(consumer(cluster)) as reader:
            reader.subscribe([topic])
            found = {}
            while len(found) < sent:
                for message in reader.consume(500, timeout=30) or [None]:
                    check(message is not None, f"{sent} messages are read, not {len(found)}")
                    if message.error():
                        continue
                    value = int(message.value())
                    check(value not in found, f"{value} comes once")
                    found[value] = (message.partition(), message.offset())
        equal(found, offsets, "what was read is what was acknowledged")
        for part in range(PARTITIONS):
            values = sorted((at[1], value) for value, at in found.items() if at[0] == part)
            equal([value for _, value in values], sorted(value for _, value in values), "order of sending")


if __name__ == "__main__":
    main()
