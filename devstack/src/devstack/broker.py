"""``python -m devstack.broker``: the Kafka broker and its object store, as one process with one child.

The store is a thread here, the broker (Tansu) the child: a SIGKILL or SIGSTOP of the component takes both. It makes the
platform's topics as soon as the broker listens; until they exist the component does not accept work.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from devstack import launch, wheels
from devstack.objectstore import ObjectStore, Server

TOPICS = ("auralink.events", "auralink.events.dead")
PARTITIONS = 1  # one order for all events
TOPICS_LIMIT = 20.0  # s until the topics must exist
STOP_LIMIT = 3.0  # s from SIGTERM to SIGKILL
BUCKET = "auralink"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devstack.broker", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="where the broker listens, on 127.0.0.1")
    parser.add_argument("--advertised", type=int, required=True, help="the port that clients are told")
    parser.add_argument("--data", type=Path, required=True, help="folder of the object store")
    parser.add_argument("--record", type=Path, required=True, help="where the child's pid and identity are written")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT, or until the broker ends; returns the exit status."""
    server = Server(ObjectStore(options.data), secrets.token_hex(32))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = threading.Event()
    broker = start(options, server)

    def stop(*_: object) -> None:
        asked.set()
        broker.terminate()

    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, stop)
    try:
        make_topics(options.port, broker, asked)
        status = broker.wait() if not asked.is_set() else ended(broker)
    finally:
        ended(broker)
        options.record.unlink(missing_ok=True)
    return 0 if asked.is_set() else status or 1


def start(options: argparse.Namespace, server: Server) -> subprocess.Popen[bytes]:
    """The broker, which dies with this process."""
    command = [
        str(wheels.tansu()), "broker",
        "--listener-url", f"tcp://127.0.0.1:{options.port}",
        "--advertised-listener-url", f"tcp://127.0.0.1:{options.advertised}",
        "--storage-engine", f"s3://{BUCKET}/",
    ]  # fmt: skip
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(options.record), str(os.getpid()), "-1", "-1"]
    environment = {
        "NO_COLOR": "1",
        "AWS_ENDPOINT": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": server.secret,
        "AWS_SECRET_ACCESS_KEY": server.secret,
    }
    return subprocess.Popen([*launcher, *command], env={**os.environ, **environment})  # noqa: S603  (our own program)


def make_topics(port: int, broker: subprocess.Popen[bytes], asked: threading.Event) -> None:
    """Raises:
    TimeoutError: the broker runs, and the topics do not exist in time.
    """
    end = time.monotonic() + TOPICS_LIMIT
    while missing := set(TOPICS) - topics(port):
        if broker.poll() is not None or asked.is_set():
            return
        if time.monotonic() > end:
            raise TimeoutError(f"no topics {', '.join(sorted(missing))} after {TOPICS_LIMIT:g} s")
        for name in missing:
            tansu("topic", "create", name, "--partitions", str(PARTITIONS), port=port)
        asked.wait(0.01)


def topics(port: int) -> set[str]:
    """The broker's topics; empty as long as it does not answer."""
    try:
        return {topic["name"] for topic in json.loads(tansu("topic", "list", port=port))}
    except ValueError:
        return set()


def tansu(*command: str, port: int) -> str:
    """What the broker's own client prints; empty when it fails."""
    line = [str(wheels.tansu()), *command, "--broker", f"tcp://127.0.0.1:{port}"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def ended(broker: subprocess.Popen[bytes]) -> int:
    """Stops the broker if it still runs; its exit status."""
    broker.terminate()
    try:
        return broker.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        broker.kill()
        return broker.wait()


if __name__ == "__main__":
    sys.exit(main(arguments()))
