"""`python -m simulated_provider --host HOST --port PORT`: serve until SIGTERM or Ctrl-C."""

import argparse

import uvicorn

from simulated_provider.app import create_app


def main() -> None:
    """Parse the arguments and serve; a port in use ends the process with uvicorn's message and status 1."""
    parser = argparse.ArgumentParser(prog="simulated_provider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        limit_concurrency=1000,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
