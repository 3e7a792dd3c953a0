"""Health check of the containers: exit status 0 when the service in this container answers 200, else 1.

    python healthy.py [PATH]        on port HTTP_PORT, within 2 s

The images have no curl, and need none. The standard library alone, and no proxy settings: they are for other hosts.
"""

import http.client
import os
import sys

LIMIT = 2.0  # s


def main() -> int:
    path = sys.argv[1] if len(sys.argv) > 1 else "/health/ready"
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["HTTP_PORT"]), timeout=LIMIT)
    try:
        connection.request("GET", path)
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        print(f"{path}: {error!r}", file=sys.stderr)  # noqa: T201 - the engine keeps it, `docker inspect` shows it
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
