"""``python -m devstack.faultproxy -host 127.0.0.1 -port 8474 -config proxies.json``: Toxiproxy's own options."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from devstack.faultproxy.api import create_app
from devstack.faultproxy.proxy import AddressError, ConflictError, Proxies


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devstack.faultproxy", description=__doc__)
    parser.add_argument("-host", "--host", default="127.0.0.1", help="where the admin API listens")
    parser.add_argument("-port", "--port", type=int, default=8474)
    parser.add_argument("-config", "--config", type=Path, help="JSON file with the proxies to start with")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    proxies = Proxies()
    if options.config:
        await proxies.populate(json.loads(options.config.read_text(encoding="utf-8")))
    runner = web.AppRunner(create_app(proxies), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    await stop.wait()
    await proxies.close()
    await runner.cleanup()


def raise_file_limit() -> None:
    """Two sockets per connection: as many as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise_file_limit()
    try:
        uvloop.run(main(arguments()))
    except (ConflictError, AddressError, OSError, ValueError) as error:
        sys.exit(f"fault proxy: {error}")
