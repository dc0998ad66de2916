"""aiokafka against martletd."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka import errors

from common import CODECS, Broker, check, equal, main, sample_records, scenario

STEP_SECONDS = 60


def asynchronous(function):
    """A scenario that is a coroutine, with a limit on its whole time."""
    def body():
        asyncio.run(asyncio.wait_for(function(), 3 * STEP_SECONDS))
    body.__name__ = function.__name__
    return scenario(body)


async def eventually(probe, what, seconds=STEP_SECONDS):
    end = asyncio.get_running_loop().time() + seconds
    while not probe():
        check(asyncio.get_running_loop().time() < end, f"not within {seconds} s: {what}")
        await asyncio.sleep(0.05)


def producer(broker, **settings):
    return AIOKafkaProducer(bootstrap_servers=broker.address, **{"linger_ms": 5, **settings})


def consumer(broker, *topics, **settings):
    return AIOKafkaConsumer(*topics, bootstrap_servers=broker.address, **{
        "auto_offset_reset": "earliest", "enable_auto_commit": False, "fetch_max_wait_ms": 100, **settings})


async def send_all(broker, topic, records, partition=0, **settings):
    async with producer(broker, **settings) as client:
        futures = [
            await client.send(topic, key=key, value=value, headers=headers, timestamp_ms=stamp, partition=partition)
            for key, value, headers, stamp in records]
        await client.flush()
        return [result.offset for result in await asyncio.gather(*futures)]


async def collect(client, count, seconds=STEP_SECONDS):
    found = []
    end = asyncio.get_running_loop().time() + seconds
    while len(found) < count:
        check(asyncio.get_running_loop().time() < end, f"{len(found)} of {count} messages after {seconds} s")
        for messages in (await client.getmany(timeout_ms=500)).values():
            found += messages
    return found


async def read_all(broker, topic, count, offset=0, **settings):
    async with consumer(broker, **settings) as client:
        part = TopicPartition(topic, 0)
        client.assign([part])
        client.seek(part, offset)
        return await collect(client, count)


def as_record(message):
    return message.key, message.value, list(message.headers), message.timestamp


@asynchronous
async def every_codec_keeps_every_shape_of_record():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"codec-{codec}")
            records = sample_records(codec, empty=False)
            kind = None if codec == "none" else codec
            equal(await send_all(broker, topic, records, compression_type=kind), list(range(len(records))), "offsets")
            found = await read_all(broker, topic, len(records))
            equal([as_record(message) for message in found], records, codec)


@asynchronous
async def acks_and_idempotence():
    with Broker() as broker:
        for name, settings in {"leader": {"acks": 1}, "all": {"acks": "all"},
                               "idempotent": {"enable_idempotence": True}}.items():
            topic = broker.create(f"acks-{name}")
            records = [(b"k", b"%d" % n, [], 1000 + n) for n in range(500)]
            await send_all(broker, topic, records, max_batch_size=1000, **settings)
            found = await read_all(broker, topic, 500)
            equal([as_record(message) for message in found], records, name)
        topic = broker.create("acks-none")
        async with producer(broker, acks=0) as client:
            for number in range(100):
                await client.send(topic, b"%d" % number)
            await client.flush()
        found = await read_all(broker, topic, 100)
        equal([message.value for message in found], [b"%d" % number for number in range(100)])


@asynchronous
async def offsets_and_seeking():
    with Broker() as broker:
        topic = broker.create("times")
        await send_all(broker, topic, [(None, b"%d" % n, [], 1_000_000 + 10 * n) for n in range(100)],
                       max_batch_size=500, compression_type="gzip")
        part = TopicPartition(topic, 0)
        async with consumer(broker) as client:
            client.assign([part])
            found = (await client.offsets_for_times({part: 1_000_505}))[part]
            equal((found.offset, found.timestamp), (51, 1_000_510))
            equal((await client.offsets_for_times({part: 2_000_000}))[part], None)
            equal(await client.beginning_offsets([part]), {part: 0})
            equal(await client.end_offsets([part]), {part: 100})
            for start in (1, 50, 99):
                client.seek(part, start)
                message = await client.getone()
                equal((message.offset, message.value), (start, b"%d" % start), "the middle of a batch")
            client.seek(part, 5000)
        async with consumer(broker, auto_offset_reset="none") as client:
            client.assign([part])
            client.seek(part, 5000)
            try:
                await asyncio.wait_for(client.getone(), STEP_SECONDS)
                raise AssertionError("an offset out of range was read")
            except errors.OffsetOutOfRangeError:
                pass


@asynchronous
async def too_big_a_message_is_refused():
    with Broker() as broker:
        topic = broker.create("big", max_message_bytes=100000)
        async with producer(broker, max_request_size=5_000_000) as client:
            try:
                await client.send_and_wait(topic, b"x" * 300_000)
                raise AssertionError("a message above the limit was taken")
            except errors.MessageSizeTooLargeError:
                pass
            equal((await client.send_and_wait(topic, b"x" * 90_000)).offset, 0)


@asynchronous
async def administration():
    with Broker() as broker:
        api = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        await api.start()
        try:
            await api.create_topics([NewTopic("a", 3, 1, topic_configs={"retention.ms": "5000"}), NewTopic("b", 1, 1)])
            equal(sorted(await api.list_topics()), ["a", "b"])
            answer = await api.create_topics([NewTopic("a", 1, 1)])
            equal([entry[1] for entry in answer.topic_errors], [errors.TopicAlreadyExistsError.errno])
            await api.create_partitions({"a": NewPartitions(5)})
            described = await api.describe_topics(["a"])
            equal(len(described[0]["partitions"]), 5)
            resource = ConfigResource(ConfigResourceType.TOPIC, "a")
            found = (await api.describe_configs([resource]))[0].resources[0]
            values = {entry[0]: entry[1] for entry in found[4]}
            equal(values["retention.ms"], "5000")
            await api.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "a", configs={"retention.ms": "6000"})])
            found = (await api.describe_configs([resource]))[0].resources[0]
            equal({entry[0]: entry[1] for entry in found[4]}["retention.ms"], "6000")
            await send_all(broker, "a", [(None, b"%d" % n, [], 1000) for n in range(20)], acks="all")
            part = TopicPartition("a", 0)
            equal((await api.delete_records({part: RecordsToDelete(7)}))[part], 7)
            cluster = await api.describe_cluster()
            equal([f"{node['host']}:{node['port']}" for node in cluster["brokers"]], [broker.address])
            await api.delete_topics(["a", "b"])
            equal(await api.list_topics(), [])
        finally:
            await api.close()


@asynchronous
async def idempotent_producer_survives_kill_9():
    with Broker() as broker:
        topic = broker.create("killed")
        async with producer(broker, enable_idempotence=True, max_batch_size=500, request_timeout_ms=20000) as client:
            futures = []
            for index in range(2000):
                futures.append(await client.send(topic, b"%d" % index, partition=0))
                if index == 1000:
                    await asyncio.sleep(0)
                    broker.kill()
                    broker.start()
            await client.flush()
            offsets = [result.offset for result in await asyncio.gather(*futures)]
        equal(offsets, list(range(2000)), "acknowledged offsets")
        found = await read_all(broker, topic, 2000)
        equal([message.value for message in found], [b"%d" % index for index in range(2000)], "order and once each")


# Groups


class Member:
    def __init__(self, broker, group, topic, *strategy, **settings):
        self.client = consumer(
            broker, topic, group_id=group, partition_assignment_strategy=strategy, session_timeout_ms=6000,
            heartbeat_interval_ms=500, metadata_max_age_ms=1000, **settings)
        self.values = []
        self.task = None

    async def join(self):
        await self.client.start()
        self.task = asyncio.create_task(self._read())

    async def _read(self):
        while True:
            for messages in (await self.client.getmany(timeout_ms=100)).values():
                self.values += [message.value for message in messages]

    @property
    def assigned(self):
        return {part.partition for part in self.client.assignment()}

    async def leave(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.values:
            await self.client.commit()
        await self.client.stop()


@asynchronous
async def group_eager_rebalances():
    with Broker() as broker:
        for strategy in (RangePartitionAssignor, RoundRobinPartitionAssignor, StickyPartitionAssignor):
            topic = broker.create(f"shared-{strategy.name}", 4)
            group = f"team-{strategy.name}"
            first, second = Member(broker, group, topic, strategy), Member(broker, group, topic, strategy)
            await first.join()
            await eventually(lambda: len(first.assigned) == 4, "the first member has everything")
            await second.join()
            await eventually(lambda: len(first.assigned) == 2 and len(second.assigned) == 2, "two members share")
            for part in range(4):
                await send_all(broker, topic, [(b"k", b"%d-%d" % (part, n), [], 1) for n in range(10)], partition=part)
            await eventually(lambda: len(first.values) + len(second.values) == 40, "every message is read")
            equal(len(set(first.values + second.values)), 40, "once each")
            await second.leave()
            await eventually(lambda: len(first.assigned) == 4, "one has everything again")
            await first.leave()


@asynchronous
async def group_commits_and_static_members():
    with Broker() as broker:
        topic = broker.create("kept", 2)
        await send_all(broker, topic, [(b"k", b"%d" % n, [], 1) for n in range(10)])
        member = Member(broker, "keepers", topic, RangePartitionAssignor, group_instance_id="one")
        await member.join()
        await eventually(lambda: len(member.values) == 10, "everything is read")
        await member.leave()
        broker.kill()
        broker.start()
        await send_all(broker, topic, [(b"k", b"%d" % n, [], 1) for n in range(10, 15)])
        member = Member(broker, "keepers", topic, RangePartitionAssignor, group_instance_id="one")
        await member.join()
        await eventually(lambda: len(member.values) >= 5, "what came after the commit")
        equal(member.values, [b"%d" % n for n in range(10, 15)])
        await member.leave()
        api = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        await api.start()
        try:
            offsets = await api.list_consumer_group_offsets("keepers")
            equal({part: entry.offset for part, entry in offsets.items()},
                  {TopicPartition(topic, 0): 15, TopicPartition(topic, 1): 0})
            check(("keepers", "consumer") in [entry[:2] for entry in await api.list_consumer_groups()], "listed")
        finally:
            await api.close()


if __name__ == "__main__":
    main()
