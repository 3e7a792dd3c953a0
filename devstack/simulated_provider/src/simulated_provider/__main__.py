"""`python -m simulated_provider --host HOST --port PORT`: serve until SIGTERM or Ctrl-C."""

import argparse
import sys

import uvloop

from simulated_provider.app import App
from simulated_provider.server import serve
from simulated_provider.values import Settings


def main() -> int:
    """Parse the arguments and serve; a port in use ends the process with a message and status 1."""
    parser = argparse.ArgumentParser(prog="simulated_provider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between two tokens")
    parser.add_argument("--answer-tokens", type=int, default=0, help="fill chat answers up to so many tokens")
    arguments = parser.parse_args()
    app = App(Settings(arguments.delay, arguments.answer_tokens))
    try:
        uvloop.run(serve(app, arguments.host, arguments.port))
    except OSError as error:
        print(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
