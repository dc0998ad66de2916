"""What the scripts of this folder share: a broker of their own, the martlet command, sample records, a runner.

Usage of every script:  SCRIPT --list            prints its scenarios, one a line
                        SCRIPT NAME [NAME ...]   runs them; exit code 0 means each held

MARTLET_PRODUCTS names the folder with the executables martletd and martlet. Each scenario has a broker of its
own on a free port with its data in a temporary folder, and ends it.
"""

import contextlib
import ctypes
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import wire

# What the broker loads for a codec at its first use; without it batches of the codec are refused.
CODEC_LIBRARIES = {"snappy": "libsnappy.so.1", "lz4": "liblz4.so.1", "zstd": "libzstd.so.1"}


def usable(codec):
    """Whether the broker can read the codec on this machine; says so when not."""
    try:
        if codec in CODEC_LIBRARIES:
            ctypes.CDLL(CODEC_LIBRARIES[codec])
        return True
    except OSError:
        print(f"{codec} is left out: no {CODEC_LIBRARIES[codec]} here", file=sys.stderr)
        return False


CODECS = [codec for codec in ("none", "gzip", "snappy", "lz4", "zstd") if usable(codec)]
# For scenarios that want compression, whichever it is.
ANY_CODEC = "lz4" if "lz4" in CODECS else "gzip"
READY_SECONDS = 30
COMMAND_SECONDS = 120

_scenarios = {}


def scenario(function):
    """Registers a scenario of the script that runs, not of one it imports; its name is the function's with hyphens."""
    if function.__module__ == "__main__":
        _scenarios[function.__name__.replace("_", "-")] = function
    return function


def main():
    names = sys.argv[1:]
    if names == ["--list"]:
        print("\n".join(_scenarios))
        return
    for name in names:
        if name not in _scenarios:
            sys.exit(f"no scenario {name}; --list shows them")
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            _scenarios[name]()
            print(f"passed {name} ({time.monotonic() - began:.1f} s)", flush=True)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            print(f"FAILED {name} ({time.monotonic() - began:.1f} s)", flush=True)
            failed.append(name)
    # Client libraries leave threads behind that would keep the process alive.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


def products():
    folder = os.environ.get("MARTLET_PRODUCTS")
    if not folder:
        sys.exit("MARTLET_PRODUCTS must name the folder with martletd and martlet")
    return pathlib.Path(folder)


def equal(actual, expected, what=""):
    if actual != expected:
        raise AssertionError(f"{what}: expected {shorten(expected)}, found {shorten(actual)}")


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def shorten(value):
    text = repr(value)
    return text if len(text) < 600 else f"{text[:400]} ... {text[-100:]} ({len(text)} characters)"


def raises(kind, call, what=""):
    """Runs `call`, which must raise `kind`; returns the exception."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what or call}: expected {kind}")


def eventually(probe, what, seconds=30):
    """Asks `probe` until it is true, with a short pause between, and returns what it gave."""
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Broker:
    """A martletd process with a data folder that outlives restarts."""

    def __init__(self, settings=None, arguments=()):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="martlet-interop-"))
        self.settings = {
            "auto.create.topics.enable": "true",
            "group.initial.rebalance.delay.ms": "0",
            **(settings or {}),
        }
        self.arguments = list(arguments)
        self.address = "127.0.0.1:0"
        self.process = None
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if kind is not None:
            print("--- last lines of the broker's log\n" + "\n".join(self.log()[-15:]), flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self):
        return self.folder / "data"

    @property
    def host(self):
        return self.address.rpartition(":")[0]

    @property
    def port(self):
        return int(self.address.rpartition(":")[2])

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Starts the daemon, on the port it had before, and waits for its ready line."""
        command = [str(products() / "martletd"), "--listen", self.address, "--data-dir", str(self.data)]
        for key, value in self.settings.items():
            command += ["--set", f"{key}={value}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command + self.arguments, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
                env=clean_environment())
        line = b""
        end = time.monotonic() + READY_SECONDS
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            if not readable:
                raise AssertionError(f"the broker was not ready within {READY_SECONDS} s")
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise AssertionError("the broker ended before it was ready:\n" + "\n".join(self.log()[-15:]))
            line += byte
        found = re.fullmatch(rb"ready (\S+:\d+)\n", line)
        check(found, f"the broker's first line is {line!r}")
        self.address = found.group(1).decode()

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the broker must end by itself with code 0."""
        self.process.send_signal(signal.SIGTERM)
        equal(self.process.wait(timeout=30), 0, "exit code after SIGTERM")

    def log(self):
        return (self.folder / "log").read_text(errors="replace").splitlines()

    def resident_bytes(self):
        return self._status("VmRSS")

    def peak_bytes(self):
        return self._status("VmHWM")

    def _status(self, field):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"/proc has no {field}: is the broker alive?")

    def alive(self):
        return self.process.poll() is None

    def martlet(self, *arguments, data=b"", fails=False):
        """Runs the martlet command against this broker; returns its standard output as bytes."""
        result = subprocess.run(
            [str(products() / "martlet"), *map(str, arguments), "--bootstrap", self.address],
            input=data, capture_output=True, timeout=COMMAND_SECONDS, env=clean_environment())
        if (result.returncode != 0) != fails:
            raise AssertionError(
                f"martlet {' '.join(map(str, arguments))} ended with {result.returncode}: {result.stderr.decode()}")
        return result.stderr if fails else result.stdout

    def create(self, topic, partitions=1, **settings):
        """Makes a topic by a frame of our own, far quicker than by a command; returns its name."""
        configs = {key.replace("_", "."): str(value) for key, value in settings.items()}
        with self.connect() as connection:
            answer = wire.call(connection, wire.create_topic(topic, partitions, configs))
        equal(wire.create_topic_error(answer), 0, f"error of making {topic}")
        return topic

    def connect(self, timeout=20):
        return socket.create_connection((self.host, self.port), timeout=timeout)


def clean_environment():
    """Without the variables that the daemon would read as its configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MARTLET_")}
    kept["SWIFT_BACKTRACE"] = "enable=no"
    return kept


def run(*command, data=b"", seconds=COMMAND_SECONDS, fails=False):
    """Runs a command to its end; returns its standard output."""
    result = subprocess.run([str(part) for part in command], input=data, capture_output=True, timeout=seconds)
    if (result.returncode != 0) != fails:
        raise AssertionError(
            f"{' '.join(map(str, command))} ended with {result.returncode}:"
            f" {result.stderr.decode(errors='replace')[-2000:]}")
    return result.stderr if fails else result.stdout


def sample_records(seed, count=300, empty=True):
    """Records of many shapes: (key, value, headers, timestamp ms). Values compress partly.

    `empty`: whether there are records with neither key nor value, which some clients refuse to send.
    """
    source = random.Random(seed)
    words = [source.randbytes(source.randint(1, 12)) for _ in range(40)]
    records = []
    for index in range(count):
        key = None if index % 5 == 0 else (b"" if index % 7 == 0 else b"key-%d" % (index % 17))
        value = None if index % 11 == 0 else b"".join(source.choices(words, k=source.randint(0, 60)))
        if key is None and value is None and not empty:
            value = b""
        headers = [("h%d" % number, source.randbytes(number)) for number in range(index % 4)]
        records.append((key, value, headers, 1_600_000_000_000 + index * 7))
    return records


@contextlib.contextmanager
def closing(thing):
    try:
        yield thing
    finally:
        thing.close()
