"""kafka-python against martletd. It negotiates the newest versions, so it walks the upper end of our ranges."""

import threading
import time

import kafka.errors as errors
from kafka import (
    KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, OffsetSpec, TopicPartition)
from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from common import CODECS, Broker, check, closing, equal, eventually, main, raises, sample_records, scenario


def consumer(broker, **settings):
    return KafkaConsumer(**{
        "bootstrap_servers": broker.address, "auto_offset_reset": "earliest", "enable_auto_commit": False,
        "fetch_max_wait_ms": 100, "reconnect_backoff_max_ms": 300, **settings})


def producer(broker, **settings):
    return KafkaProducer(**{
        "bootstrap_servers": broker.address, "linger_ms": 5, "reconnect_backoff_max_ms": 300, **settings})


def admin(broker):
    return KafkaAdminClient(bootstrap_servers=broker.address)


def send_all(broker, topic, records, partition=0, **settings):
    with closing(producer(broker, **settings)) as client:
        futures = [
            client.send(topic, key=key, value=value, headers=headers, timestamp_ms=stamp, partition=partition)
            for key, value, headers, stamp in records]
        client.flush(60)
        return [future.get(60).offset for future in futures]


def collect(client, count, seconds=60):
    found = []
    end = time.monotonic() + seconds
    while len(found) < count:
        check(time.monotonic() < end, f"{len(found)} of {count} messages after {seconds} s")
        for messages in client.poll(timeout_ms=500).values():
            found += messages
    return found


def read_all(broker, topic, count, offset=0, partition=0, **settings):
    with closing(consumer(broker, **settings)) as client:
        part = TopicPartition(topic, partition)
        client.assign([part])
        client.seek(part, offset)
        return collect(client, count)


def as_record(message):
    return message.key, message.value, [tuple(header) for header in message.headers], message.timestamp


@scenario
def infers_the_pinned_release():
    """kafka-python derives the release from the ranges, and turns features on and off by it."""
    with Broker() as broker, closing(admin(broker)) as api:
        node = api.describe_cluster()["brokers"][0]["broker_id"]
        equal(api.get_broker_version_data(node).broker_version, (4, 3), "the release kafka-python infers")


@scenario
def every_codec_keeps_every_shape_of_record():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"codec-{codec}")
            records = sample_records(codec, empty=False)
            kind = None if codec == "none" else codec
            equal(send_all(broker, topic, records, compression_type=kind), list(range(len(records))), "offsets")
            for sessions in (True, False):
                found = read_all(broker, topic, len(records), enable_incremental_fetch_sessions=sessions)
                equal([as_record(message) for message in found], records, codec)


@scenario
def acks_and_idempotence():
    with Broker() as broker:
        for name, settings in {
            "none": {"acks": 0, "enable_idempotence": False}, "leader": {"acks": 1, "enable_idempotence": False},
            "all": {"acks": "all", "enable_idempotence": False}, "idempotent": {"enable_idempotence": True},
        }.items():
            topic = broker.create(f"acks-{name}")
            records = sample_records(name, 600, empty=False)
            send_all(broker, topic, records, batch_size=2000, **settings)
            equal([as_record(message) for message in read_all(broker, topic, 600)], records, name)


@scenario
def offsets_by_timestamp():
    with Broker() as broker:
        topic = broker.create("times")
        send_all(broker, topic, [(None, b"%d" % n, [], 1_000_000 + 10 * n) for n in range(100)], batch_size=500)
        part = TopicPartition(topic, 0)
        with closing(consumer(broker)) as client:
            found = client.offsets_for_times({part: 1_000_505})[part]
            equal((found.offset, found.timestamp), (51, 1_000_510))
            check(client.offsets_for_times({part: 2_000_000})[part] is None, "nothing after the last")
            equal(client.beginning_offsets([part]), {part: 0})
            equal(client.end_offsets([part]), {part: 100})
        with closing(admin(broker)) as api:
            for spec, expected in [(OffsetSpec.EARLIEST, 0), (OffsetSpec.LATEST, 100), (OffsetSpec.MAX_TIMESTAMP, 99),
                                   (OffsetSpec.EARLIEST_LOCAL, 0)]:
                equal(api.list_partition_offsets({part: spec})[part].offset, expected, str(spec))


@scenario
def fetch_from_the_middle_of_a_batch():
    with Broker() as broker:
        topic = broker.create("middle")
        records = sample_records(4, 100, empty=False)
        send_all(broker, topic, records, compression_type="gzip", linger_ms=100)
        for start in (1, 50, 99):
            found = read_all(broker, topic, 100 - start, offset=start)
            equal([message.offset for message in found], list(range(start, 100)))
            equal(as_record(found[0]), records[start])


@scenario
def too_big_a_message_is_refused():
    with Broker() as broker:
        topic = broker.create("big", max_message_bytes=100000)
        with closing(producer(broker, max_request_size=5_000_000, enable_idempotence=False)) as client:
            raises(errors.MessageSizeTooLargeError, lambda: client.send(topic, b"x" * 300_000).get(30))
            equal(client.send(topic, b"x" * 90_000).get(30).offset, 0)


@scenario
def topic_administration():
    with Broker() as broker, closing(admin(broker)) as api:
        api.create_topics({"a": {"num_partitions": 3, "replication_factor": 1, "configs": {"retention.ms": "1000"}},
                           "b": {}}, wait_for_metadata=True)
        raises(errors.TopicAlreadyExistsError, lambda: api.create_topics({"a": {}}))
        raises(errors.InvalidTopicError, lambda: api.create_topics({"bad name": {}}))
        equal(sorted(api.list_topics()), ["a", "b"])
        topic = api.describe_topics(["a"])[0]
        equal(sorted(part["partition_index"] for part in topic["partitions"]), [0, 1, 2])
        identifier = topic["topic_id"]
        api.create_partitions({"a": 5})
        equal(len(api.describe_topics(["a"])[0]["partitions"]), 5)
        raises(errors.InvalidPartitionsError, lambda: api.create_partitions({"a": 2}))
        page = api.describe_topic_partitions(["a", "b"], response_partition_limit=4)
        equal(page["next_cursor"], {"topic_name": "a", "partition_index": 4})
        page = api.describe_topic_partitions(["a", "b"], response_partition_limit=4, cursor=page["next_cursor"])
        equal([(topic["name"], [part["partition_index"] for part in topic["partitions"]]) for topic in page["topics"]],
              [("a", [4]), ("b", [0])])
        api.delete_topics(["b"])
        raises(errors.UnknownTopicOrPartitionError, lambda: api.delete_topics(["b"]))
        import uuid
        api.delete_topics([identifier if isinstance(identifier, uuid.UUID) else uuid.UUID(str(identifier))])
        equal(api.list_topics(), [])


@scenario
def configuration():
    with Broker() as broker, closing(admin(broker)) as api:
        topic = broker.create("set", retention_ms=5000)

        def values(kind="all"):
            found = api.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter=kind)
            return {key: entry["value"] for key, entry in found["topic"][topic].items()}
        equal(values("modified"), {"retention.ms": "5000"})
        check(len(values()) > 15, "defaults are listed too")
        for incremental, change in [
            (True, {"cleanup.policy": (AlterConfigOp.APPEND, "compact"), "retention.ms": (AlterConfigOp.DELETE, None)}),
            (False, {"retention.bytes": "1000"}),
        ]:
            resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=change)
            api.alter_configs([resource], incremental=incremental)
        equal(values("modified")["retention.bytes"], "1000")
        equal(values()["retention.ms"], "604800000")
        node = api.describe_cluster()["brokers"][0]["broker_id"]
        found = api.describe_configs([ConfigResource(ConfigResourceType.BROKER, str(node))], config_filter="all")
        equal(found["broker"][str(node)]["auto.create.topics.enable"]["value"], "true")


@scenario
def cluster_records_and_log_dirs():
    with Broker() as broker, closing(admin(broker)) as api:
        topic = broker.create("cut")
        send_all(broker, topic, sample_records(1, 50, empty=False), batch_size=300)
        part = TopicPartition(topic, 0)
        equal(api.delete_records({part: 20})[part]["low_watermark"], 20)
        equal(read_all(broker, topic, 30, offset=20)[0].offset, 20)
        raises(errors.OffsetOutOfRangeError, lambda: read_all(broker, topic, 1, offset=5, auto_offset_reset="none"))
        directories = api.describe_log_dirs()
        text = str(directories)
        check(str(broker.data) in text and topic in text, f"log directories: {text[:500]}")
        found = api.describe_cluster()
        equal([f"{node['host']}:{node['port']}" for node in found["brokers"]], [broker.address])
        features = api.describe_features()
        check(features["metadata.version"]["finalized"][0] > 0, f"features: {features}")


# Groups


class Member:
    def __init__(self, broker, group, topic, strategy=(RangePartitionAssignor,), **settings):
        self.client = consumer(
            broker, group_id=group, partition_assignment_strategy=strategy, session_timeout_ms=6000,
            heartbeat_interval_ms=500, **settings)
        self.client.subscribe([topic])
        self.assigned, self.values = set(), []
        self.leaving = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            while not self.leaving.is_set():
                # Long enough to see a join through: kafka-python forgets the assignment when a poll ends between
                # the answers to its JoinGroup and its SyncGroup.
                for messages in self.client.poll(timeout_ms=1000).values():
                    self.values += [message.value for message in messages]
                self.assigned = {part.partition for part in self.client.assignment()}
                if self.values:
                    self.client.commit_async()
        except Exception as error:
            self.error = error
        finally:
            self.client.close()

    def leave(self):
        self.leaving.set()
        self.thread.join(30)
        if self.error:
            raise self.error


def rebalances(*strategy):
    with Broker() as broker:
        topic = broker.create("shared", 4)
        first = Member(broker, "team", topic, strategy)
        eventually(lambda: first.assigned == {0, 1, 2, 3}, "the first member has everything")
        second = Member(broker, "team", topic, strategy)
        eventually(lambda: len(first.assigned) == 2 and len(second.assigned) == 2, "two members share")
        for part in range(4):
            send_all(broker, topic, [(None, b"%d-%d" % (part, n), [], 1) for n in range(20)], partition=part)
        eventually(lambda: len(first.values) + len(second.values) == 80, "every message is read")
        equal(len(set(first.values + second.values)), 80, "once each")
        second.leave()
        eventually(lambda: len(first.assigned) == 4, "one has everything again")
        first.leave()


@scenario
def group_eager_rebalances():
    rebalances(RangePartitionAssignor, RoundRobinPartitionAssignor)


@scenario
def group_cooperative_rebalances():
    rebalances(CooperativeStickyAssignor)


@scenario
def group_static_members():
    with Broker() as broker:
        topic = broker.create("static", 2)
        member = Member(broker, "fixed", topic, group_instance_id="one")
        eventually(lambda: member.assigned == {0, 1}, "an assignment")
        with closing(admin(broker)) as api:
            found = api.describe_groups(["fixed"])["fixed"]
            equal([entry["group_instance_id"] for entry in found["members"]], ["one"])
        member.leave()


@scenario
def group_administration():
    with Broker() as broker, closing(admin(broker)) as api:
        topic = broker.create("watched", 2)
        send_all(broker, topic, sample_records(1, 10, empty=False))
        member = Member(broker, "crew", topic)
        eventually(lambda: len(member.values) == 10, "everything is read")
        part = TopicPartition(topic, 0)
        eventually(lambda: api.list_group_offsets({"crew": None})["crew"].get(part), "a commit")
        listed = api.list_groups()
        equal([(entry["group_id"], entry["group_state"], entry["group_type"]) for entry in listed],
              [("crew", "Stable", "classic")])
        equal(api.list_groups(states_filter=["empty"]), [])
        equal(api.list_groups(types_filter=["consumer"]), [])
        equal(api.describe_groups(["crew"])["crew"]["group_state"], "Stable")
        member.leave()
        eventually(lambda: api.describe_groups(["crew"])["crew"]["group_state"] == "Empty", "an empty group")
        changed = api.alter_group_offsets("crew", {part: OffsetAndMetadata(3, "note", -1)})
        equal([result.errno if hasattr(result, "errno") else result for result in changed.values()], [0])
        found = api.list_group_offsets({"crew": [part], "other": [part]})
        equal((found["crew"][part].offset, found["crew"][part].metadata), (3, "note"))
        api.delete_group_offsets("crew", [part])
        found = api.list_group_offsets({"crew": None})["crew"]
        check(part not in found, f"deleted offsets: {found}")
        api.delete_groups(["crew"])
        equal(api.list_groups(), [])


@scenario
def group_reading_goes_on_over_kill_9():
    with Broker() as broker:
        topic = broker.create("going", 2)
        member = Member(broker, "goers", topic, retry_backoff_ms=50)
        eventually(lambda: member.assigned == {0, 1}, "an assignment")
        send_all(broker, topic, [(None, b"a%d" % n, [], 1) for n in range(50)])
        eventually(lambda: len(member.values) == 50, "half is read")
        broker.kill()
        broker.start()
        send_all(broker, topic, [(None, b"b%d" % n, [], 1) for n in range(50)])
        eventually(lambda: len(set(member.values)) == 100, "everything is read", seconds=60)
        member.leave()


if __name__ == "__main__":
    main()
