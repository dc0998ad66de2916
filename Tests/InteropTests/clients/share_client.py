"""The share consumer of confluent-kafka (KIP-932) against martletd."""

import json
import os
import subprocess
import sys
import time

from confluent_kafka import AcknowledgeType, KafkaException, Producer, ShareConsumer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from common import Broker, check, clean_environment, equal, eventually, main, scenario

QUICK_LOCKS = {
    "group.share.min.record.lock.duration.ms": "1000", "group.share.record.lock.duration.ms": "2000",
}


def member(broker, group, topics, **settings):
    client = ShareConsumer({
        "bootstrap.servers": broker.address, "log_level": 0, "group.id": group, "reconnect.backoff.max.ms": 300,
        **{key.replace("_", "."): value for key, value in settings.items()}})
    client.subscribe(topics)
    return client


def configure(broker, group, **values):
    """Sets configurations of the group; from the earliest record unless said otherwise."""
    values = {"share_auto_offset_reset": "earliest", **values}
    api = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=[
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in values.items()])
    api.incremental_alter_configs([resource])[resource].result(20)


def produce(broker, topic, values, partitions=1, **settings):
    client = Producer({"bootstrap.servers": broker.address, "log_level": 0, "linger.ms": 5, **settings})
    failures = []
    for index, value in enumerate(values):
        client.produce(topic, value, partition=index % partitions,
                       on_delivery=lambda error, _: failures.append(error) if error else None)
        client.poll(0)
    equal(client.flush(60), 0, "messages left in the queue")
    equal(failures, [], "delivery errors")


def good(messages):
    """The records of a poll; errors that pass are left out."""
    found = []
    for message in messages:
        if message.error():
            check(message.error().retriable(), f"a passing error: {message.error()}")
        else:
            found.append(message)
    return found


def poll_until(client, count, seconds=40, each=None):
    """Records of as many polls as it takes."""
    found = []
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        for message in good(client.poll(0.5)):
            found.append(message)
            if each:
                each(message)
    check(len(found) >= count, f"{len(found)} of {count} records within {seconds} s")
    return found


def shown(broker, group):
    found, = json.loads(broker.martlet("group", "describe", group, "--json"))
    return found


@scenario
def members_share_the_records_of_a_topic():
    with Broker() as broker:
        topic = broker.create("work", 3)
        configure(broker, "g")
        count = 6000
        produce(broker, topic, [b"%d" % index for index in range(count)], 3)
        clients = [member(broker, "g", [topic]) for _ in range(3)]
        found = {}
        shares = [0] * len(clients)
        end = time.monotonic() + 60
        while len(found) < count and time.monotonic() < end:
            for index, client in enumerate(clients):
                for message in good(client.poll(0.2)):
                    value = message.value()
                    check(value not in found, f"{value} came twice")
                    found[value] = index
                    shares[index] += 1
        equal(len(found), count, "records")
        check(min(shares) > 0, f"everybody has some: {shares}")
        for client in clients:
            client.commit_sync(20.0)
            client.close()
        eventually(lambda: sum(part["lag"] for part in shown(broker, "g")["partitions"]) == 0, "no lag")
        equal(shown(broker, "g")["state"], "Empty")


@scenario
def records_are_accepted_released_and_rejected():
    with Broker() as broker:
        topic = broker.create("orders", 1)
        configure(broker, "g")
        produce(broker, topic, [b"%d" % index for index in range(30)])
        client = member(broker, "g", [topic], share_acknowledgement_mode="explicit")
        deliveries = {}

        def decide(message):
            value = int(message.value())
            deliveries[value] = deliveries.get(value, 0) + 1
            if value % 3 == 0:
                client.acknowledge(message, AcknowledgeType.REJECT)
            elif value % 3 == 1 and deliveries[value] == 1:
                client.acknowledge(message, AcknowledgeType.RELEASE)
            else:
                client.acknowledge(message, AcknowledgeType.ACCEPT)

        poll_until(client, 40, each=decide)
        results = client.commit_sync(20.0)
        check(all(error is None for error in results.values()), f"{results}")
        for message in good(client.poll(1.0)):
            decide(message)
        equal({value: deliveries[value] for value in range(30)},
              {value: 2 if value % 3 == 1 else 1 for value in range(30)}, "deliveries")
        client.close()
        eventually(lambda: shown(broker, "g")["partitions"][0]["committed"] == 30, "the start follows")


@scenario
def a_record_that_nobody_manages_is_given_up():
    with Broker() as broker:
        topic = broker.create("poison", 1)
        configure(broker, "g", share_delivery_count_limit="3")
        produce(broker, topic, [b"bad", b"good"])
        client = member(broker, "g", [topic], share_acknowledgement_mode="explicit")
        deliveries = {b"bad": 0, b"good": 0}

        def decide(message):
            deliveries[message.value()] += 1
            client.acknowledge(
                message, AcknowledgeType.RELEASE if message.value() == b"bad" else AcknowledgeType.ACCEPT)

        poll_until(client, 4, each=decide)
        for _ in range(4):
            for message in good(client.poll(0.5)):
                decide(message)
        client.close()
        equal(deliveries, {b"bad": 3, b"good": 1}, "deliveries")


DYING_MEMBER = """
import os, sys
sys.path.insert(0, os.environ["CLIENTS"])
import share_client as s
class Address:
    address = sys.argv[1]
client = s.member(Address, sys.argv[2], [sys.argv[3]], share_acknowledgement_mode="explicit")
s.poll_until(client, int(sys.argv[4]))
print("has them", flush=True)
sys.stdin.read()
"""


@scenario
def what_a_dead_member_held_goes_to_another():
    with Broker() as broker:
        topic = broker.create("work", 1)
        configure(broker, "g")
        produce(broker, topic, [b"%d" % index for index in range(20)])
        dying = subprocess.Popen(
            [sys.executable, "-c", DYING_MEMBER, broker.address, "g", topic, "20"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**clean_environment(), "CLIENTS": os.path.dirname(os.path.abspath(__file__)),
                                         "MARTLET_PRODUCTS": os.environ["MARTLET_PRODUCTS"]})
        equal(dying.stdout.readline(), b"has them\n")
        client = member(broker, "g", [topic])
        equal(good(client.poll(2.0)), [], "records that another member holds")
        dying.kill()
        dying.wait()
        began = time.monotonic()
        equal(sorted(int(message.value()) for message in poll_until(client, 20)), list(range(20)))
        check(time.monotonic() - began < 20, "sooner than the locks end")
        client.close()


@scenario
def a_lock_that_ends_frees_the_records():
    with Broker(QUICK_LOCKS) as broker:
        topic = broker.create("slow", 1)
        configure(broker, "g")
        produce(broker, topic, [b"a", b"b"])
        slow = member(broker, "g", [topic], share_acknowledgement_mode="explicit")
        held = poll_until(slow, 2)
        quick = member(broker, "g", [topic], share_acknowledgement_mode="explicit")
        again = sorted(poll_until(quick, 2), key=lambda message: message.offset())
        equal([message.value() for message in again], [b"a", b"b"])
        # The first stays in flight: what is before the first record in flight is done with, whoever says so.
        quick.acknowledge(again[1], AcknowledgeType.ACCEPT)
        results = quick.commit_sync(20.0)
        check(results and all(error is None for error in results.values()), f"in time: {results}")
        for message in held:
            slow.acknowledge(message, AcknowledgeType.ACCEPT)
        results = slow.commit_sync(20.0)
        check(results and all(error is not None for error in results.values()), f"too late: {results}")
        quick.acknowledge(again[0], AcknowledgeType.ACCEPT)
        quick.close()
        slow.close()


@scenario
def a_group_goes_on_over_kill_9():
    """Locks are held at each kill: what was confirmed is never seen again, everything is seen."""
    with Broker(QUICK_LOCKS) as broker:
        topic = broker.create("work", 2)
        configure(broker, "g", share_delivery_count_limit="10")
        count = 3000
        produce(broker, topic, [b"%d" % index for index in range(count)], 2)
        confirmed = set()
        seen = set()
        for round_number in range(4):
            clients = [member(broker, "g", [topic], share_acknowledgement_mode="explicit", max_poll_records="100")
                       for _ in range(2)]
            for _ in range(4):
                for client in clients:
                    batch = good(client.poll(2.0))
                    for message in batch:
                        value = message.value()
                        check(value not in confirmed, f"{value} was confirmed before round {round_number}")
                        seen.add(value)
                        client.acknowledge(message, AcknowledgeType.ACCEPT)
                    results = client.commit_sync(20.0)
                    for place, error in results.items():
                        if error is None:
                            confirmed |= {message.value() for message in batch
                                          if message.partition() == place.partition}
            held = [message for client in clients for message in good(client.poll(1.0))]
            seen |= {message.value() for message in held}
            broker.kill()
            for client in clients:
                try:
                    for message in held:
                        client.acknowledge(message, AcknowledgeType.RELEASE)
                except Exception:
                    pass
            broker.start()
            for client in clients:
                try:
                    client.close()
                except KafkaException:
                    pass
        check(confirmed, "some are confirmed")
        client = member(broker, "g", [topic])
        end = time.monotonic() + 60
        while len(seen | confirmed) < count and time.monotonic() < end:
            for message in good(client.poll(0.5)):
                check(message.value() not in confirmed, f"{message.value()} was confirmed")
                seen.add(message.value())
        equal(len(seen), count, "records seen")
        client.commit_sync(20.0)
        client.close()
        eventually(lambda: sum(part["lag"] for part in shown(broker, "g")["partitions"]) == 0, "no lag")


@scenario
def committed_transactions_alone_are_seen():
    with Broker() as broker:
        topic = broker.create("ledger", 1)
        configure(broker, "g", share_isolation_level="read_committed")
        client = Producer({
            "bootstrap.servers": broker.address, "log_level": 0, "transactional.id": "tx", "linger.ms": 5})
        client.init_transactions(20)
        for number in range(6):
            client.begin_transaction()
            for index in range(10):
                client.produce(topic, b"%d-%d" % (number, index))
            client.flush(20)
            if number % 2 == 0:
                client.commit_transaction(20)
            else:
                client.abort_transaction(20)
        reader = member(broker, "g", [topic])
        found = [message.value() for message in poll_until(reader, 30)]
        found += [message.value() for message in good(reader.poll(1.0))]
        equal(sorted(found), sorted(b"%d-%d" % (number, index) for number in (0, 2, 4) for index in range(10)))
        reader.close()
        eventually(lambda: shown(broker, "g")["partitions"][0]["lag"] == 0, "no lag")


@scenario
def compressed_and_compacted_topics_are_shared():
    with Broker() as broker:
        topic = broker.create("mixed", 1)
        configure(broker, "g")
        for codec in ("none", "gzip"):
            produce(broker, topic, [b"%s-%d" % (codec.encode(), index) for index in range(50)],
                    **{"compression.type": codec})
        reader = member(broker, "g", [topic])
        equal(len({message.value() for message in poll_until(reader, 100)}), 100)
        reader.close()


@scenario
def share_groups_are_listed_described_and_deleted():
    with Broker() as broker:
        topic = broker.create("watched", 2)
        configure(broker, "crew")
        produce(broker, topic, [b"%d" % index for index in range(10)], 2)
        client = member(broker, "crew", [topic], client_id="sailor")
        poll_until(client, 10)
        client.commit_sync(20.0)
        listed = json.loads(broker.martlet("group", "list", "--json"))
        equal([(group["group"], group["type"], group["state"]) for group in listed], [("crew", "share", "Stable")])
        found = shown(broker, "crew")
        equal((found["strategy"], [one["clientID"] for one in found["members"]]), ("simple", ["sailor"]))
        equal(sorted((part["partition"], part["committed"], part["end"], part["lag"])
                     for part in found["partitions"]), [(0, 5, 5, 0), (1, 5, 5, 0)])
        check(b"START" in broker.martlet("group", "describe", "crew"), "the text names the start")
        check(b"NON_EMPTY_GROUP" in broker.martlet("group", "delete", "crew", fails=True), "a group in use stays")
        client.close()
        eventually(lambda: shown(broker, "crew")["state"] == "Empty", "nobody is there")
        broker.martlet("group", "delete", "crew")
        equal(json.loads(broker.martlet("group", "list", "--json")), [])


if __name__ == "__main__":
    main()
