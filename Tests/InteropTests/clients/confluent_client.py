"""confluent-kafka (current librdkafka) against martletd, and in both directions with the martlet command."""

import json
import os
import random
import threading
import time

from confluent_kafka import (
    OFFSET_BEGINNING, OFFSET_END, Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException,
    Producer, TopicCollection, TopicPartition)
from confluent_kafka.admin import (
    AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ConfigSource, NewPartitions, NewTopic, OffsetSpec,
    ResourceType)

from common import ANY_CODEC, CODECS, Broker, check, equal, eventually, main, raises, sample_records, scenario


def producer(broker, **settings):
    return Producer({
        "bootstrap.servers": broker.address, "log_level": 0, "linger.ms": 5, "message.timeout.ms": 60000,
        "reconnect.backoff.max.ms": 300, **{key.replace("_", "."): value for key, value in settings.items()}})


def consumer(broker, group="unused", **settings):
    return Consumer({
        "bootstrap.servers": broker.address, "log_level": 0, "group.id": group, "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "fetch.wait.max.ms": 100, "reconnect.backoff.max.ms": 300,
        **{key.replace("_", "."): value for key, value in settings.items()}})


def admin(broker):
    return AdminClient({"bootstrap.servers": broker.address, "log_level": 0, "reconnect.backoff.max.ms": 300})


def send_all(broker, topic, records, partition=0, **settings):
    """Sends the records in order and returns their offsets, once all are acknowledged."""
    client = producer(broker, **settings)
    outcomes = []
    for key, value, headers, timestamp in records:
        while True:
            try:
                client.produce(
                    topic, value=value, key=key, headers=headers, timestamp=timestamp, partition=partition,
                    on_delivery=lambda error, message: outcomes.append((error, message.offset())))
                break
            except BufferError:
                client.poll(0.1)
        client.poll(0)
    equal(client.flush(60), 0, "messages left in the queue")
    equal([error for error, _ in outcomes if error], [], "delivery errors")
    return [offset for _, offset in outcomes]


def read_all(broker, topic, count, partition=0, offset=OFFSET_BEGINNING, **settings):
    client = consumer(broker, **settings)
    client.assign([TopicPartition(topic, partition, offset)])
    found = collect(client, count)
    client.close()
    return found


def collect(client, count, seconds=60):
    found = []
    end = time.monotonic() + seconds
    while len(found) < count:
        check(time.monotonic() < end, f"{len(found)} of {count} messages after {seconds} s")
        for message in client.consume(count - len(found), timeout=1):
            if message.error():
                raise KafkaException(message.error())
            found.append(message)
    return found


def as_record(message):
    return message.key(), message.value(), message.headers() or [], message.timestamp()[1]


@scenario
def every_codec_keeps_every_shape_of_record():
    with Broker() as broker:
        for codec in CODECS:
            records = sample_records(codec)
            topic = broker.create(f"codec-{codec}")
            equal(send_all(broker, topic, records, compression_type=codec), list(range(len(records))), "offsets")
            equal([as_record(message) for message in read_all(broker, topic, len(records))], records, codec)


@scenario
def topics_with_a_codec_of_their_own():
    with Broker() as broker:
        records = sample_records(5)
        for codec in CODECS[1:]:
            topic = broker.create(f"own-{codec}", compression_type=codec)
            send_all(broker, topic, records, compression_type="none")
            equal([as_record(message) for message in read_all(broker, topic, len(records))], records, codec)
        topic = broker.create("unpacked", compression_type="uncompressed")
        send_all(broker, topic, records, compression_type="gzip")
        equal([as_record(message) for message in read_all(broker, topic, len(records))], records, "uncompressed")


@scenario
def log_append_time_replaces_the_producers_timestamps():
    with Broker() as broker:
        topic = broker.create("stamped", message_timestamp_type="LogAppendTime")
        before = time.time() * 1000 - 1
        send_all(broker, topic, sample_records(6, 20), compression_type=ANY_CODEC)
        for message in read_all(broker, topic, 20):
            kind, stamp = message.timestamp()
            equal(kind, 2, "timestamp type")
            check(before <= stamp <= time.time() * 1000 + 1, f"{stamp} is the present")


@scenario
def acks_and_idempotence():
    with Broker() as broker:
        for name, settings in {
            "none": {"acks": 0}, "leader": {"acks": 1}, "all": {"acks": -1}, "idempotent": {"enable_idempotence": True},
        }.items():
            topic = broker.create(f"acks-{name}")
            records = sample_records(name, 1000)
            send_all(broker, topic, records, batch_num_messages=50, **settings)
            equal([as_record(message) for message in read_all(broker, topic, 1000)], records, name)


def committed_values(broker, topic, count, **settings):
    """Values that a read_committed consumer is shown."""
    found = read_all(broker, topic, count, isolation_level="read_committed", **settings)
    return [message.value().decode() for message in found]


@scenario
def transactions_are_all_or_nothing():
    with Broker() as broker:
        topics = [broker.create("left"), broker.create("right")]
        client = producer(broker, transactional_id="both", transaction_timeout_ms=60000)
        client.init_transactions(30)
        expected = []
        for round in range(20):
            client.begin_transaction()
            for topic in topics:
                for part in range(5):
                    client.produce(topic, value=f"{round}-{part}", partition=0)
            if round % 3 == 1:
                client.flush(30)
                client.abort_transaction(30)
            else:
                client.commit_transaction(30)
                expected += [f"{round}-{part}" for part in range(5)]
        for topic in topics:
            equal(committed_values(broker, topic, len(expected)), expected, topic)
            equal(len(read_all(broker, topic, 100, isolation_level="read_uncommitted")), 100, "all records")


@scenario
def a_new_transactional_producer_fences_the_old_one():
    with Broker() as broker:
        topic = broker.create("fenced")
        old = producer(broker, transactional_id="one")
        old.init_transactions(30)
        old.begin_transaction()
        old.produce(topic, value="old", partition=0)
        old.flush(30)
        new = producer(broker, transactional_id="one")
        new.init_transactions(30)
        new.begin_transaction()
        new.produce(topic, value="new", partition=0)
        new.commit_transaction(30)
        error = raises(KafkaException, lambda: old.commit_transaction(30))
        check(error.args[0].fatal(), f"the old producer is fenced for good: {error}")
        equal(committed_values(broker, topic, 1), ["new"], "records")


@scenario
def a_transaction_over_its_timeout_is_aborted():
    with Broker() as broker:
        topic = broker.create("slow")
        client = producer(broker, transactional_id="slow", transaction_timeout_ms=1000, message_timeout_ms=1000)
        client.init_transactions(30)
        client.begin_transaction()
        client.produce(topic, value="too late", partition=0)
        client.flush(10)
        send_all(broker, topic, [(None, b"behind", None, 0)])
        equal(committed_values(broker, topic, 1), ["behind"], "records behind the aborted one")
        raises(KafkaException, lambda: client.commit_transaction(30))


@scenario
def exactly_once_copy():
    """Consume, transform, produce with the offsets in the transaction, through crashes of the copier."""
    with Broker() as broker:
        source, target = broker.create("source"), broker.create("target")
        count = 400
        send_all(broker, source, [(None, str(number).encode(), None, 0) for number in range(count)])
        draw = random.Random(7)
        copied = 0
        while copied < count:
            reader = consumer(broker, group="copier", isolation_level="read_committed")
            reader.subscribe([source])
            writer = producer(broker, transactional_id="copier")
            writer.init_transactions(30)
            while copied < count:
                batch = reader.consume(draw.randint(1, 40), timeout=5)
                if not batch:
                    continue
                writer.begin_transaction()
                for message in batch:
                    check(message.error() is None, f"{message.error()}")
                    writer.produce(target, value=message.value(), partition=0)
                writer.send_offsets_to_transaction(
                    reader.position(reader.assignment()), reader.consumer_group_metadata(), 30)
                fate = draw.random()
                if fate < 0.15:
                    # The copier dies with the transaction open; the next one takes over.
                    break
                if fate < 0.3:
                    writer.abort_transaction(30)
                    break
                writer.commit_transaction(30)
                copied += len(batch)
            reader.close()
            del writer
        equal(committed_values(broker, target, count), [str(number) for number in range(count)], "copies")


class Copier(threading.Thread):
    """Copies exactly once, as an application does that restarts itself after what it cannot handle."""

    def __init__(self, broker, source, target):
        super().__init__(daemon=True)
        self.broker, self.source, self.target = broker, source, target
        self.done = threading.Event()
        self.failures = []
        self.start()

    def run(self):
        while not self.done.is_set():
            try:
                self.copy()
            except KafkaException as error:
                self.failures.append(str(error))
                time.sleep(0.1)

    def copy(self):
        reader = consumer(self.broker, group="copier", isolation_level="read_committed", session_timeout_ms=6000)
        # With its re-bootstrap librdkafka 2.16 keeps asking a broker object it has given up for the group's
        # coordinator, and send_offsets_to_transaction never returns.
        writer = producer(
            self.broker, transactional_id="copier", transaction_timeout_ms=60000, metadata_recovery_strategy="none")
        try:
            reader.subscribe([self.source])
            writer.init_transactions(30)
            while not self.done.is_set():
                batch = [message for message in reader.consume(20, timeout=0.2) if not message.error()]
                if not batch:
                    continue
                writer.begin_transaction()
                for message in batch:
                    writer.produce(self.target, value=message.value(), partition=0)
                writer.send_offsets_to_transaction(
                    reader.position(reader.assignment()), reader.consumer_group_metadata(), 30)
                while True:
                    try:
                        writer.commit_transaction(30)
                        break
                    except KafkaException as error:
                        if not error.args[0].retriable():
                            raise
        finally:
            reader.close()


@scenario
def exactly_once_copy_over_kill_9():
    rounds = int(os.environ.get("COPY_ROUNDS", "12"))
    seed = int(os.environ.get("COPY_SEED", "20260131"))
    print(f"seed {seed}, {rounds} rounds")
    draw = random.Random(seed)
    with Broker() as broker:
        source, target = broker.create("source"), broker.create("target")
        copier = Copier(broker, source, target)
        client = producer(broker, enable_idempotence=True)
        sent = 0
        for _ in range(rounds):
            for _ in range(draw.randint(50, 300)):
                client.produce(source, value=str(sent).encode(), partition=0)
                sent += 1
            client.flush(60)
            time.sleep(draw.random() * 0.6)
            broker.kill()
            broker.start()
        client.flush(60)
        committed_values(broker, target, sent)
        copier.done.set()
        copier.join(60)
        # All of it, so that nothing that came twice hides behind the count.
        reader = consumer(broker, isolation_level="read_committed")
        reader.assign([TopicPartition(target, 0, OFFSET_BEGINNING)])
        found = []
        while batch := reader.consume(1000, timeout=3):
            found += [message.value().decode() for message in batch if not message.error()]
        reader.close()
        equal(found, [str(number) for number in range(sent)], f"copies ({copier.failures[-3:]})")
        print(f"{sent} records, {len(copier.failures)} restarts of the copier")


@scenario
def offsets_by_timestamp():
    with Broker() as broker:
        topic = broker.create("times")
        records = [(None, b"%d" % index, [], 1_000_000 + 10 * index) for index in range(200)]
        send_all(broker, topic, records, batch_num_messages=20, compression_type="gzip")
        client = consumer(broker)
        for stamp, expected in [(0, 0), (1_000_000, 0), (1_000_001, 1), (1_000_990, 99), (1_001_990, 199),
                                (1_001_991, OFFSET_END)]:
            found = client.offsets_for_times([TopicPartition(topic, 0, stamp)], timeout=10)[0].offset
            equal(found, expected, f"offset for {stamp}")
        equal(client.get_watermark_offsets(TopicPartition(topic, 0), timeout=10), (0, 200), "watermarks")
        client.close()
        api = admin(broker)
        for spec, expected in [(OffsetSpec.earliest(), 0), (OffsetSpec.latest(), 200),
                               (OffsetSpec.max_timestamp(), 199), (OffsetSpec.for_timestamp(1_000_505), 51)]:
            for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED):
                answer = api.list_offsets({TopicPartition(topic, 0): spec}, isolation_level=level)
                equal([part.result().offset for part in answer.values()], [expected], str(spec))


@scenario
def fetch_from_the_middle_of_a_batch():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"middle-{codec}")
            records = sample_records(9, 100)
            send_all(broker, topic, records, compression_type=codec, linger_ms=200)
            for start in (1, 57, 99):
                found = read_all(broker, topic, 100 - start, offset=start)
                equal([message.offset() for message in found], list(range(start, 100)), codec)
                equal(as_record(found[0]), records[start], codec)


@scenario
def out_of_range_offsets_reset():
    with Broker() as broker:
        topic = broker.create("short")
        send_all(broker, topic, sample_records(1, 5))
        equal([message.offset() for message in read_all(broker, topic, 5, offset=5000)], [0, 1, 2, 3, 4])
        client = consumer(broker, auto_offset_reset="error")
        client.assign([TopicPartition(topic, 0, 5000)])
        errors = []

        def poll():
            message = client.poll(0.2)
            if message is not None and message.error():
                errors.append(message.error().code())
            return errors
        eventually(poll, "an error")
        equal(errors[0], KafkaError._AUTO_OFFSET_RESET)
        client.close()


@scenario
def big_messages_and_their_limits():
    with Broker() as broker:
        topic = broker.create("big", max_message_bytes=200000)
        good = random.Random(1).randbytes(150_000)
        send_all(broker, topic, [(b"k", good, [], 1000)], message_max_bytes=10_000_000)
        client = producer(broker, message_max_bytes=10_000_000)
        errors = []
        client.produce(topic, value=random.Random(2).randbytes(300_000), partition=0,
                       on_delivery=lambda error, _: errors.append(error))
        client.flush(30)
        equal([error.code() for error in errors], [KafkaError.MSG_SIZE_TOO_LARGE], "too large a message")
        equal([message.value() for message in read_all(broker, topic, 1)], [good])
        # A batch above the fetch limits still gets through, alone.
        topic = broker.create("bigger", max_message_bytes=8_000_000)
        values = [random.Random(index).randbytes(3_000_000) for index in range(3)]
        send_all(broker, topic, [(None, value, [], 1000) for value in values], message_max_bytes=7_000_000)
        found = read_all(broker, topic, 3, fetch_message_max_bytes=1000, fetch_max_bytes=1000, message_max_bytes=1000,
                         receive_message_max_bytes=10_000_000)
        equal([message.value() for message in found], values, "values above the fetch limit")


@scenario
def topic_administration():
    with Broker() as broker:
        api = admin(broker)
        made = api.create_topics([NewTopic("a", 3, 1, config={"retention.ms": "1000"}), NewTopic("b", 1, 1)])
        for future in made.values():
            future.result(20)
        error = raises(KafkaException, lambda: api.create_topics([NewTopic("a", 1, 1)])["a"].result(20))
        equal(error.args[0].code(), KafkaError.TOPIC_ALREADY_EXISTS)
        for name, parts, replicas, config, code in [
            ("bad name!", 1, 1, {}, KafkaError.TOPIC_EXCEPTION),
            ("c", 0, 1, {}, KafkaError.INVALID_PARTITIONS),
            ("c", 1, 3, {}, KafkaError.INVALID_REPLICATION_FACTOR),
            ("c", 1, 1, {"no.such.key": "1"}, KafkaError.INVALID_CONFIG),
            ("c", 1, 1, {"retention.ms": "many"}, KafkaError.INVALID_CONFIG),
        ]:
            error = raises(KafkaException, lambda: api.create_topics(
                [NewTopic(name, parts, replicas, config=config)])[name].result(20), f"{name} {config}")
            equal(error.args[0].code(), code, f"{name} {parts} {replicas} {config}")
        api.create_topics([NewTopic("dry", 1, 1)], validate_only=True)["dry"].result(20)
        equal(set(api.list_topics(timeout=20).topics), {"a", "b"}, "topics")
        described = api.describe_topics(TopicCollection(["a"]))["a"].result(20)
        equal(len(described.partitions), 3)
        equal(described.is_internal, False)
        api.create_partitions([NewPartitions("a", 5)])["a"].result(20)
        eventually(lambda: len(api.list_topics("a", timeout=20).topics["a"].partitions) == 5, "five partitions")
        error = raises(KafkaException, lambda: api.create_partitions([NewPartitions("a", 4)])["a"].result(20))
        equal(error.args[0].code(), KafkaError.INVALID_PARTITIONS)
        error = raises(KafkaException, lambda: api.create_partitions([NewPartitions("x", 4)])["x"].result(20))
        equal(error.args[0].code(), KafkaError.UNKNOWN_TOPIC_OR_PART)
        for future in api.delete_topics(["a"]).values():
            future.result(20)
        error = raises(KafkaException, lambda: api.delete_topics(["a"])["a"].result(20))
        equal(error.args[0].code(), KafkaError.UNKNOWN_TOPIC_OR_PART)
        eventually(lambda: set(api.list_topics(timeout=20).topics) == {"b"}, "only b is left")


@scenario
def configuration():
    with Broker() as broker:
        api = admin(broker)
        topic = broker.create("set", retention_ms=5000)
        resource = ConfigResource(ResourceType.TOPIC, topic)

        def values():
            return api.describe_configs([resource])[resource].result(20)
        found = values()
        equal((found["retention.ms"].value, found["retention.ms"].source),
              ("5000", ConfigSource.DYNAMIC_TOPIC_CONFIG.value))
        check(found["cleanup.policy"].is_default, "cleanup.policy has its default")
        check(len(found) > 15, f"defaults are listed too: {sorted(found)}")
        change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
            ConfigEntry("segment.bytes", "1048576", incremental_operation=AlterConfigOpType.SET),
            ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.APPEND),
            ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)])
        api.incremental_alter_configs([change])[change].result(20)
        found = values()
        equal(found["segment.bytes"].value, "1048576")
        equal(set(found["cleanup.policy"].value.split(",")), {"delete", "compact"})
        equal(found["retention.ms"].value, "604800000", "back to its default")
        bad = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
            ConfigEntry("segment.bytes", "-3", incremental_operation=AlterConfigOpType.SET)])
        error = raises(KafkaException, lambda: api.incremental_alter_configs([bad])[bad].result(20))
        equal(error.args[0].code(), KafkaError.INVALID_CONFIG)
        legacy = ConfigResource(ResourceType.TOPIC, topic, set_config={"retention.bytes": "1000"})
        api.alter_configs([legacy])[legacy].result(20)
        found = values()
        equal(found["retention.bytes"].value, "1000")
        equal(found["segment.bytes"].value, "1073741824", "AlterConfigs replaces everything")
        absent = ConfigResource(ResourceType.TOPIC, "absent")
        error = raises(KafkaException, lambda: api.describe_configs([absent])[absent].result(20))
        equal(error.args[0].code(), KafkaError.UNKNOWN_TOPIC_OR_PART)
        node = next(iter(api.list_topics(timeout=20).brokers))
        own = ConfigResource(ResourceType.BROKER, str(node))
        found = api.describe_configs([own])[own].result(20)
        equal(found["auto.create.topics.enable"].value, "true")


@scenario
def cluster_description():
    with Broker() as broker:
        api = admin(broker)
        found = api.describe_cluster().result(20)
        equal([f"{node.host}:{node.port}" for node in found.nodes], [broker.address])
        equal(found.controller.id, found.nodes[0].id)
        equal(found.cluster_id, api.list_topics(timeout=20).cluster_id)
        equal(len(found.cluster_id), 22)


@scenario
def deleting_records_moves_the_log_start():
    with Broker() as broker:
        api = admin(broker)
        topic = broker.create("cut")
        send_all(broker, topic, sample_records(3, 100), batch_num_messages=10)
        part = TopicPartition(topic, 0, 42)
        equal(api.delete_records([part])[part].result(20).low_watermark, 42)
        found = read_all(broker, topic, 58)
        equal([message.offset() for message in found], list(range(42, 100)))
        beyond = TopicPartition(topic, 0, 101)
        error = raises(KafkaException, lambda: api.delete_records([beyond])[beyond].result(20))
        equal(error.args[0].code(), KafkaError.OFFSET_OUT_OF_RANGE)
        part = TopicPartition(topic, 0, OFFSET_END)
        equal(api.delete_records([part])[part].result(20).low_watermark, 100)
        broker.kill()
        broker.start()
        client = consumer(broker)
        equal(client.get_watermark_offsets(TopicPartition(topic, 0), timeout=20), (100, 100), "after kill -9")
        client.close()


@scenario
def idempotent_producer_survives_kill_9():
    """Everything acknowledged is there, in order, nothing twice, over three kill -9 in the middle of producing."""
    with Broker() as broker:
        topic = broker.create("killed")
        client = producer(broker, enable_idempotence=True, linger_ms=2, batch_num_messages=30, compression_type=ANY_CODEC)
        acknowledged, errors = [], []

        def delivered(error, message):
            if error:
                errors.append(error)
            else:
                acknowledged.append((message.offset(), message.value()))
        total = 6000
        for index in range(total):
            client.produce(topic, value=b"%d" % index, partition=0, on_delivery=delivered)
            client.poll(0)
            if index % 1500 == 1400:
                eventually(lambda: (client.poll(0.05), len(acknowledged) > index - 1300)[1], "acknowledgements")
                broker.kill()
                broker.start()
        equal(client.flush(90), 0, "messages left in the queue")
        equal(errors, [], "delivery errors")
        found = read_all(broker, topic, total)
        equal([message.value() for message in found], [b"%d" % index for index in range(total)], "order and once each")
        equal(sorted(acknowledged), [(index, b"%d" % index) for index in range(total)], "acknowledged offsets")


@scenario
def records_of_martlet_are_read():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"from-martlet-{codec}", 3)
            lines = [b"k%d:value %d of %s" % (n % 9, n, codec.encode()) for n in range(300)]
            broker.martlet("produce", topic, "--codec", codec, "--key-separator", ":", "--header", "a=1",
                           "--timestamp", "1600000000000", data=b"\n".join(lines) + b"\n")
            client = consumer(broker)
            client.assign([TopicPartition(topic, part, 0) for part in range(3)])
            found = collect(client, 300)
            client.close()
            by_key = {}
            for message in found:
                by_key.setdefault(message.key(), []).append(message.key() + b":" + message.value())
                equal(message.headers(), [("a", b"1")])
                equal(message.timestamp(), (1, 1_600_000_000_000))
            for key, values in by_key.items():
                equal(values, [line for line in lines if line.startswith(key + b":")], "order per key")
            equal(sum(map(len, by_key.values())), 300)


@scenario
def martlet_reads_records_and_partitions_alike():
    """The martlet command reads what librdkafka wrote, and both choose the same partition for a key."""
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"to-martlet-{codec}", 5)
            client = producer(broker, compression_type=codec, partitioner="murmur2")
            for index in range(200):
                client.produce(topic, key=b"key-%d" % index, value=b"%d" % index, headers=[("a", b"1")],
                               timestamp=1_600_000_000_000 + index)
            equal(client.flush(30), 0)
            form = "%p %k %s %h %T\\n"
            ours = broker.martlet("consume", topic, "--format", form).splitlines()
            equal(len(ours), 200)
            placed = {}
            for line in ours:
                part, key, value, headers, stamp = line.split()
                equal((key, headers, int(stamp)), (b"key-" + value, b"a=1", 1_600_000_000_000 + int(value)))
                placed[key] = part
            topic = broker.create(f"by-martlet-{codec}", 5)
            broker.martlet("produce", topic, "--codec", codec, "--key-separator", ":",
                           data=b"".join(b"key-%d:%d\n" % (index, index) for index in range(200)))
            mine = dict(line.split()[1::-1] for line in
                        broker.martlet("consume", topic, "--format", "%p %k\\n").splitlines())
            equal(mine, placed, "partition of each key")


# Groups


class Member:
    """A group member on a thread of its own, which records what it is assigned and reads."""

    def __init__(self, broker, group, topic, instance=None, strategy="range", **settings):
        options = {"partition.assignment.strategy": strategy, "session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        if instance:
            options["group.instance.id"] = instance
        options.update(settings)
        self.client = consumer(broker, group, **options)
        self.assigned, self.events, self.values = set(), [], []
        self.cooperative = strategy.startswith("cooperative")
        self.leaving = threading.Event()
        self.error = None
        self.client.subscribe([topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _assign(self, client, parts):
        self.events.append(("assign", sorted(part.partition for part in parts)))
        self.assigned |= {part.partition for part in parts}
        if self.cooperative:
            client.incremental_assign(parts)
        else:
            client.assign(parts)

    def _revoke(self, client, parts):
        self.events.append(("revoke", sorted(part.partition for part in parts)))
        self.assigned -= {part.partition for part in parts}
        if self.cooperative:
            client.incremental_unassign(parts)
        else:
            client.unassign()

    def _run(self):
        try:
            while not self.leaving.is_set():
                message = self.client.poll(0.1)
                if message is None:
                    continue
                if message.error():
                    raise KafkaException(message.error())
                self.values.append(message.value())
                self.client.commit(message, asynchronous=True)
        except Exception as error:
            self.error = error
        finally:
            self.client.close()

    def leave(self):
        self.leaving.set()
        self.thread.join(30)
        if self.error:
            raise self.error


def rebalances(strategy):
    with Broker() as broker:
        topic = broker.create("shared", 6)
        first = Member(broker, "team", topic, strategy=strategy)
        eventually(lambda: first.assigned == set(range(6)), "the first member has everything")
        second = Member(broker, "team", topic, strategy=strategy)
        eventually(lambda: len(first.assigned) == 3 and len(second.assigned) == 3, "two members share")
        check(first.assigned | second.assigned == set(range(6)), "nothing is left out")
        third = Member(broker, "team", topic, strategy=strategy)
        members = [first, second, third]
        eventually(lambda: all(len(member.assigned) == 2 for member in members), "three members share")
        for part in range(6):
            send_all(broker, topic, [(None, b"%d-%d" % (part, n), [], 1) for n in range(20)], partition=part)
        eventually(lambda: sum(len(member.values) for member in members) == 120, "every message is read")
        equal(len(set(first.values + second.values + third.values)), 120, "once each")
        second.leave()
        eventually(lambda: len(first.assigned) == 3 and len(third.assigned) == 3, "two share after a leave")
        if strategy.startswith("cooperative"):
            revoked = [event for event in first.events if event[0] == "revoke"]
            check(all(len(parts) < 6 for _, parts in revoked), "a cooperative member never gives up everything")
        first.leave()
        third.leave()


@scenario
def group_eager_rebalances():
    rebalances("range")


@scenario
def group_cooperative_rebalances():
    rebalances("cooperative-sticky")


@scenario
def group_static_member_keeps_its_partitions():
    with Broker() as broker:
        topic = broker.create("static", 4)
        one = Member(broker, "fixed", topic, instance="one", **{"session.timeout.ms": 30000})
        two = Member(broker, "fixed", topic, instance="two", **{"session.timeout.ms": 30000})
        eventually(lambda: len(one.assigned) == 2 and len(two.assigned) == 2, "two members share")
        had, events = set(one.assigned), len(two.events)
        one.leave()  # a static member does not leave the group when it closes
        again = Member(broker, "fixed", topic, instance="one", **{"session.timeout.ms": 30000})
        eventually(lambda: again.assigned == had, "the same partitions again")
        equal(len(two.events), events, "the other member saw no rebalance")
        api = admin(broker)
        description = api.describe_consumer_groups(["fixed"])["fixed"].result(20)
        equal(sorted(member.group_instance_id for member in description.members), ["one", "two"])
        fencing = Member(broker, "fixed", topic, instance="two", **{"session.timeout.ms": 30000})
        eventually(lambda: two.error is not None, "the older holder of the name is fenced")
        equal(two.error.args[0].code(), KafkaError._FATAL)
        again.leave()
        fencing.leave()


@scenario
def group_dead_member_is_replaced():
    with Broker() as broker:
        topic = broker.create("orphan", 2)
        silent = consumer(broker, "heirs", session_timeout_ms=6000, heartbeat_interval_ms=5900,
                          max_poll_interval_ms=7000)
        silent.subscribe([topic])
        eventually(lambda: (silent.poll(0.1), silent.assignment())[1], "an assignment")
        heir = Member(broker, "heirs", topic)
        eventually(lambda: heir.assigned == {0, 1}, "the heir has everything", seconds=40)
        heir.leave()


@scenario
def group_offsets_survive_restarts():
    with Broker() as broker:
        topic = broker.create("kept", 2)
        client = consumer(broker, "keepers")
        client.commit(offsets=[TopicPartition(topic, 0, 7, metadata="note"), TopicPartition(topic, 1, 9)],
                      asynchronous=False)
        client.close()
        for end in (broker.kill, broker.stop):
            end()
            broker.start()
            client = consumer(broker, "keepers")
            found = client.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], timeout=30)
            equal([(part.offset, part.metadata) for part in found], [(7, "note"), (9, None)])
            client.close()


@scenario
def group_reading_goes_on_over_kill_9():
    with Broker() as broker:
        topic = broker.create("going", 2)
        member = Member(broker, "goers", topic)
        eventually(lambda: member.assigned == {0, 1}, "an assignment")
        client = producer(broker, enable_idempotence=True)
        for index in range(400):
            client.produce(topic, value=b"%d" % index, partition=index % 2)
            if index == 200:
                client.flush(30)
                eventually(lambda: len(member.values) >= 100, "half is read")
                broker.kill()
                broker.start()
        equal(client.flush(60), 0)
        eventually(lambda: len(set(member.values)) == 400, "everything is read", seconds=60)
        member.leave()
        client = consumer(broker, "goers")
        found = client.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], timeout=30)
        equal([part.offset for part in found], [200, 200], "committed at the end")
        client.close()


@scenario
def group_administration():
    with Broker() as broker:
        api = admin(broker)
        topic = broker.create("watched", 2)
        send_all(broker, topic, sample_records(1, 10))
        member = Member(broker, "crew", topic, **{"client.id": "sailor"})
        eventually(lambda: len(member.values) == 10, "everything is read")
        listed = api.list_consumer_groups().result(20)
        equal([(group.group_id, group.state.name) for group in listed.valid], [("crew", "STABLE")])
        found = api.describe_consumer_groups(["crew"])["crew"].result(20)
        equal((found.state.name, found.partition_assignor, len(found.members)), ("STABLE", "range", 1))
        equal(found.members[0].client_id, "sailor")
        equal({part.partition for part in found.members[0].assignment.topic_partitions}, {0, 1})
        error = raises(KafkaException, lambda: api.delete_consumer_groups(["crew"])["crew"].result(20))
        equal(error.args[0].code(), KafkaError.NON_EMPTY_GROUP)
        member.leave()
        state = lambda: api.describe_consumer_groups(["crew"])["crew"].result(20).state.name
        eventually(lambda: state() == "EMPTY", "an empty group")
        offsets = api.list_consumer_group_offsets([ConsumerGroupTopicPartitions("crew")])["crew"].result(20)
        equal({(part.partition, part.offset) for part in offsets.topic_partitions}, {(0, 10)})
        api.alter_consumer_group_offsets([ConsumerGroupTopicPartitions("crew", [
            TopicPartition(topic, 0, 3), TopicPartition(topic, 1, 0)])])["crew"].result(20)
        offsets = api.list_consumer_group_offsets([ConsumerGroupTopicPartitions("crew")])["crew"].result(20)
        equal({(part.partition, part.offset) for part in offsets.topic_partitions}, {(0, 3), (1, 0)})
        api.delete_consumer_groups(["crew"])["crew"].result(20)
        equal(api.list_consumer_groups().result(20).valid, [])
        error = raises(KafkaException, lambda: api.delete_consumer_groups(["crew"])["crew"].result(20))
        equal(error.args[0].code(), KafkaError.GROUP_ID_NOT_FOUND)


@scenario
def group_members_of_both_kinds_share():
    """A martlet consumer and a librdkafka consumer in one group read everything, once."""
    with Broker() as broker:
        topic = broker.create("mixed", 4)
        member = Member(broker, "mixed", topic)
        eventually(lambda: len(member.assigned) == 4, "an assignment")
        for part in range(4):
            send_all(broker, topic, [(None, b"%d" % n, [], 1) for n in range(50)], partition=part)
        eventually(lambda: len(member.values) == 200, "everything is read")
        member.leave()
        shown = json.loads(broker.martlet("group", "describe", "mixed", "--json"))
        check("mixed" in json.dumps(shown), "martlet describes the group")
        for part in range(4):
            send_all(broker, topic, [(None, b"again", [], 1) for _ in range(10)], partition=part)
        values = broker.martlet("consume", topic, "--group", "mixed", "--max-messages", 40).split()
        equal(values, [b"again"] * 40, "martlet goes on where librdkafka committed")
        client = consumer(broker, "mixed")
        found = client.committed([TopicPartition(topic, part) for part in range(4)], timeout=20)
        equal([part.offset for part in found], [60] * 4, "what martlet committed")
        client.close()


# Groups of the consumer protocol (KIP-848)


class NewMember(Member):
    """A member with group.protocol=consumer: the broker assigns, the callbacks are incremental."""

    def __init__(self, broker, group, topic, instance=None, **settings):
        self.assigned, self.events, self.values = set(), [], []
        self.cooperative = True
        options = {"group.protocol": "consumer"}
        if instance:
            options["group.instance.id"] = instance
        options.update(settings)
        self.client = consumer(broker, group, **options)
        self.leaving = threading.Event()
        self.error = None
        self.client.subscribe([topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()


NEW_GROUPS = {"group.consumer.heartbeat.interval.ms": 500, "group.consumer.session.timeout.ms": 6000}


def share(members, count):
    parts = [part for member in members for part in member.assigned]
    return sorted(parts) == list(range(count)) and max(len(m.assigned) for m in members) - min(
        len(m.assigned) for m in members) <= 1


@scenario
def consumer_protocol_rebalances():
    """Members come and go; everything is read once, and nobody gives up more than it must."""
    with Broker(NEW_GROUPS) as broker:
        topic = broker.create("shared", 6)
        members = [NewMember(broker, "team", topic)]
        eventually(lambda: share(members, 6), "the first member has everything")
        for count in (2, 3):
            members.append(NewMember(broker, "team", topic))
            eventually(lambda: share(members, 6), f"{count} members share")
        for part in range(6):
            send_all(broker, topic, [(None, b"%d-%d" % (part, n), [], 1) for n in range(20)], partition=part)
        eventually(lambda: sum(len(member.values) for member in members) >= 120, "every message is read")
        equal(sorted(value for member in members for value in member.values),
              sorted(b"%d-%d" % (part, n) for part in range(6) for n in range(20)), "once each")
        revoked = [event for event in members[0].events if event[0] == "revoke"]
        check(all(len(parts) <= 3 for _, parts in revoked), "a member never gives up everything")
        members.pop(1).leave()
        eventually(lambda: share(members, 6), "two share after a leave")
        for member in members:
            member.leave()


@scenario
def consumer_protocol_patterns():
    """A pattern is matched on the broker; topics that come later are found."""
    with Broker(NEW_GROUPS) as broker:
        broker.create("orders-eu", 2)
        broker.create("other", 2)
        member = NewMember(broker, "team", "^orders-.*")
        eventually(lambda: member.assigned == {0, 1}, "the topic that is there")
        broker.create("orders-us", 3)
        eventually(lambda: member.assigned == {0, 1, 2}, "the topic that came later")
        send_all(broker, "orders-us", [(None, b"new", [], 1)], partition=2)
        eventually(lambda: member.values == [b"new"], "its records are read")
        member.leave()


@scenario
def consumer_protocol_survives_restarts():
    """Members, assignments and offsets outlive kill -9 of the broker."""
    with Broker(NEW_GROUPS) as broker:
        topic = broker.create("kept", 4)
        members = [NewMember(broker, "team", topic, instance=f"i{n}") for n in range(2)]
        eventually(lambda: share(members, 4), "two members share")
        before = [set(member.assigned) for member in members]
        send_all(broker, topic, [(None, b"before", [], 1)] * 10)
        eventually(lambda: sum(len(member.values) for member in members) == 10, "read before")
        time.sleep(1)
        broker.kill()
        broker.start()
        send_all(broker, topic, [(None, b"after", [], 1)] * 10)
        eventually(lambda: sum(member.values.count(b"after") for member in members) >= 10, "read after")
        equal([set(member.assigned) for member in members], before, "nobody lost its partitions")
        for member in members:
            member.leave()
        client = consumer(broker, "team")
        equal(client.committed([TopicPartition(topic, 0)], timeout=20)[0].offset, 20, "committed")
        client.close()


@scenario
def consumer_protocol_takes_over_a_classic_group():
    """Members of both protocols share a group while it goes over, and while it goes back."""
    with Broker(NEW_GROUPS) as broker:
        topic = broker.create("moving", 6)
        classic = [Member(broker, "team", topic, strategy="cooperative-sticky") for _ in range(2)]
        eventually(lambda: share(classic, 6), "two classic members share")
        send_all(broker, topic, [(None, b"%d" % n, [], 1) for n in range(50)])
        eventually(lambda: sum(len(member.values) for member in classic) == 50, "read by classic members")
        new = NewMember(broker, "team", topic)
        eventually(lambda: share(classic + [new], 6), "three members of two protocols share")
        for part in range(6):
            send_all(broker, topic, [(None, b"mixed-%d" % part, [], 1)], partition=part)
        everybody = lambda: [value for member in classic + [new] for value in member.values]
        eventually(lambda: sum(value.startswith(b"mixed") for value in everybody()) == 6, "all partitions are read")
        api = admin(broker)
        found = api.describe_consumer_groups(["team"])["team"].result(20)
        equal(len(found.members), 3, "members described")
        new.leave()
        eventually(lambda: share(classic, 6), "the classic members share again")
        send_all(broker, topic, [(None, b"classic again", [], 1)] * 5, partition=5)
        eventually(lambda: everybody().count(b"classic again") == 5, "and read")
        for member in classic:
            member.leave()


@scenario
def consumer_protocol_administration():
    with Broker(NEW_GROUPS) as broker:
        api = admin(broker)
        topic = broker.create("watched", 2)
        member = NewMember(broker, "crew", topic, **{"client.id": "sailor"})
        eventually(lambda: member.assigned == {0, 1}, "an assignment")
        listed = api.list_consumer_groups().result(20).valid
        equal([(group.group_id, group.state.name, group.type.name) for group in listed],
              [("crew", "STABLE", "CONSUMER")])
        found = api.describe_consumer_groups(["crew"])["crew"].result(20)
        equal((found.state.name, found.partition_assignor, len(found.members)), ("STABLE", "uniform", 1))
        equal(found.members[0].client_id, "sailor")
        equal({part.partition for part in found.members[0].assignment.topic_partitions}, {0, 1})
        shown, = json.loads(broker.martlet("group", "describe", "crew", "--json"))
        equal((shown["state"], shown["strategy"], len(shown["members"])), ("Stable", "uniform", 1))
        check(shown["lastRebalance"]["reason"].endswith(" joined"), f"a reason: {shown['lastRebalance']}")
        error = raises(KafkaException, lambda: api.delete_consumer_groups(["crew"])["crew"].result(20))
        equal(error.args[0].code(), KafkaError.NON_EMPTY_GROUP)
        member.leave()
        api.delete_consumer_groups(["crew"])["crew"].result(20)
        equal(api.list_consumer_groups().result(20).valid, [])


if __name__ == "__main__":
    main()
