"""kcat (librdkafka of the distribution) against martletd, and in both directions with the martlet command."""

import json
import subprocess

from common import CODECS, Broker, check, equal, eventually, main, run, scenario


def kcat(broker, *arguments, data=b"", **options):
    return run("kcat", "-b", broker.address, "-m", "20", *arguments, data=data, **options)


def consume(broker, topic, *arguments):
    return kcat(broker, "-C", "-t", topic, "-e", "-q", *arguments)


@scenario
def lists_broker_and_topics():
    with Broker() as broker:
        broker.create("orders", 3)
        shown = json.loads(kcat(broker, "-L", "-J"))
        equal([entry["name"] for entry in shown["brokers"]], [broker.address], "brokers")
        topic = [entry for entry in shown["topics"] if entry["topic"] == "orders"][0]
        equal(len(topic["partitions"]), 3, "partitions")
        node = shown["brokers"][0]["id"]
        for partition in topic["partitions"]:
            equal((partition["leader"], [entry["id"] for entry in partition["isrs"]]), (node, [node]))


@scenario
def codecs_come_back_as_sent():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"codec-{codec}")
            lines = b"".join(b"%s line %d\n" % (codec.encode(), index) * 3 for index in range(500))
            kcat(broker, "-P", "-t", topic, "-z", codec, data=lines)
            equal(consume(broker, topic), lines, codec)
            used = {line["codec"] for line in segment_batches(broker, topic)}
            equal(used, {codec}, "codec in the segment")


def segment_batches(broker, topic, partition=0):
    files = sorted((broker.data / f"{topic}-{partition}").glob("*.log"))
    batches = []
    for file in files:
        shown = run(_martlet(), "log", "dump", file, "--json")
        batches += [json.loads(line) for line in shown.splitlines() if b'"codec"' in line]
    return batches


def _martlet():
    from common import products
    return products() / "martlet"


@scenario
def keys_headers_nulls_and_timestamps():
    with Broker() as broker:
        topic = broker.create("shapes")
        kcat(broker, "-P", "-t", topic, "-K", ":", "-Z", "-H", "a=1", "-H", "b=two", data=b"k1:v1\nk2:\n:v3\n")
        form = "%o|%k|%K|%s|%S|%h|%T\n"
        shown = consume(broker, topic, "-f", form).decode().splitlines()
        fields = [line.split("|") for line in shown]
        equal([line[:6] for line in fields], [
            ["0", "k1", "2", "v1", "2", "a=1,b=two"],
            ["1", "k2", "2", "", "-1", "a=1,b=two"],
            ["2", "", "-1", "v3", "2", "a=1,b=two"],
        ])
        for line in fields:
            check(int(line[6]) > 1_700_000_000_000, "timestamp is the present")


@scenario
def offsets_tail_and_time():
    with Broker() as broker:
        topic = broker.create("numbers")
        for start in range(0, 30, 10):
            kcat(broker, "-P", "-t", topic, data=b"".join(b"%d\n" % n for n in range(start, start + 10)))
        equal(consume(broker, topic, "-o", "13", "-c", "4").split(), [b"13", b"14", b"15", b"16"], "middle of a batch")
        equal(consume(broker, topic, "-o", "-5").split(), [b"25", b"26", b"27", b"28", b"29"], "tail")
        stamps = [int(line) for line in consume(broker, topic, "-f", "%T\n").split()]
        first = stamps.index(stamps[20])
        from_time = consume(broker, topic, "-o", f"s@{stamps[20]}", "-f", "%o\n").split()
        equal([int(line) for line in from_time], list(range(first, 30)), "from a timestamp")
        shown = kcat(broker, "-Q", "-t", f"{topic}:0:{stamps[20]}").decode()
        check(f"offset {first}" in shown, f"query says {shown!r}")
        equal(kcat(broker, "-Q", "-t", f"{topic}:0:-1").decode().strip(), "numbers [0] offset 30")
        equal(kcat(broker, "-Q", "-t", f"{topic}:0:-2").decode().strip(), "numbers [0] offset 0")


@scenario
def acks_and_idempotence():
    with Broker() as broker:
        for name, options in {
            "none": ["-X", "acks=0"], "leader": ["-X", "acks=1"], "all": ["-X", "acks=all"],
            "idempotent": ["-X", "enable.idempotence=true"],
        }.items():
            topic = broker.create(f"acks-{name}")
            lines = b"".join(b"line %d\n" % index for index in range(2000))
            kcat(broker, "-P", "-t", topic, *options, data=lines)
            eventually(lambda: consume(broker, topic) == lines, f"all lines of {name}")


@scenario
def topics_are_made_on_first_use():
    with Broker() as broker:
        kcat(broker, "-P", "-t", "made-by-producing", data=b"first\n")
        equal(consume(broker, "made-by-producing"), b"first\n")
    with Broker({"auto.create.topics.enable": "false"}) as broker:
        kcat(broker, "-P", "-t", "absent", "-X", "message.timeout.ms=3000",
             "-X", "topic.metadata.propagation.max.ms=500", data=b"first\n", fails=True)


@scenario
def martlet_reads_what_kcat_wrote():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"to-martlet-{codec}", 2)
            kcat(broker, "-P", "-t", topic, "-z", codec, "-K", ":", "-H", "from=kcat",
                 data=b"".join(b"k%d:value %d of %s\n" % (n % 9, n, codec.encode()) for n in range(400)))
            form = "%p|%o|%k|%s|%h\\n"
            ours = sorted(broker.martlet("consume", topic, "--format", form).splitlines())
            theirs = sorted(consume(broker, topic, "-f", "%p|%o|%k|%s|%h\n").splitlines())
            equal(len(ours), 400, codec)
            equal(ours, theirs, codec)


@scenario
def kcat_reads_what_martlet_wrote():
    with Broker() as broker:
        for codec in CODECS:
            topic = broker.create(f"from-martlet-{codec}")
            lines = b"".join(b"k%d:value %d of %s\n" % (n % 9, n, codec.encode()) for n in range(400))
            broker.martlet(
                "produce", topic, "--codec", codec, "--key-separator", ":", "--header", "from=martlet", data=lines)
            equal(consume(broker, topic, "-f", "%k:%s\n"), lines, codec)
            equal(set(consume(broker, topic, "-f", "%h\n").split()), {b"from=martlet"}, codec)
            equal({batch["codec"] for batch in segment_batches(broker, topic)}, {codec}, "codec in the segment")


@scenario
def group_consumer_commits_and_goes_on():
    with Broker() as broker:
        topic = broker.create("grouped", 2)
        kcat(broker, "-P", "-t", topic, "-K", ":", data=b"".join(b"k%d:%d\n" % (n, n) for n in range(20)))
        first = group_read(broker, "readers", topic, 20)
        equal(sorted(map(int, first)), list(range(20)))
        kcat(broker, "-P", "-t", topic, "-K", ":", data=b"".join(b"k%d:%d\n" % (n, n) for n in range(20, 30)))
        second = group_read(broker, "readers", topic, 10)
        equal(sorted(map(int, second)), list(range(20, 30)), "after the committed offsets")


def group_read(broker, group, topic, count):
    return run(
        "kcat", "-b", broker.address, "-G", group, "-q", "-c", count, "-X", "auto.offset.reset=earliest",
        "-X", "session.timeout.ms=6000", topic).split()


@scenario
def keeps_reading_over_a_broker_restart():
    with Broker() as broker:
        topic = broker.create("restarted")
        kcat(broker, "-P", "-t", topic, data=b"".join(b"%d\n" % n for n in range(100)))
        reader = subprocess.Popen(
            ["kcat", "-b", broker.address, "-C", "-t", topic, "-q", "-u", "-E", "-c", "200",
             "-X", "reconnect.backoff.max.ms=200"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            for number in range(100):
                equal(int(reader.stdout.readline()), number)
            broker.kill()
            broker.start()
            kcat(broker, "-P", "-t", topic, data=b"".join(b"%d\n" % n for n in range(100, 200)))
            for number in range(100, 200):
                equal(int(reader.stdout.readline()), number)
            equal(reader.wait(timeout=20), 0)
        finally:
            reader.kill()


if __name__ == "__main__":
    main()
