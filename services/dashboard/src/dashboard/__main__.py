"""``python -m dashboard``: run the service until SIGTERM or Ctrl-C."""

import gc

gc.disable()  # nothing that is imported is garbage: a fifth of a start; lifecycle enables it again

from dashboard.settings import Settings
from dashboard.wiring import build
from service_kit import lifecycle
from service_kit.settings import load


async def serve(settings: Settings) -> None:
    """Build the service and serve it."""
    service = await build(settings)
    await lifecycle.serve(service.runtime, service.app, service.grpc_server)


def main() -> None:
    """Read the settings (exit 2 when they are wrong) and run (exit 1 when a port is taken)."""
    settings = load(Settings)
    lifecycle.run(lambda: serve(settings))


if __name__ == "__main__":
    main()
