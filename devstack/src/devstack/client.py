"""The command's side of the control API. Standard library only: a command should answer at once."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from devstack.errors import ChaosError, NoStackError
from devstack.state import StateDir, supervisor_alive


class ControlClient:
    """The command's side.

    Raises:
        NoStackError: no stack.json, or its supervisor is gone.
    """

    def __init__(self, state: StateDir) -> None:
        self.stack = state.read("stack.json")
        if not self.stack:
            raise NoStackError(f"no stack is running on {state.path}; start one with `auralink up`")
        if not supervisor_alive(self.stack):
            pid = self.stack.get("supervisor", {}).get("pid", "?")
            raise NoStackError(
                f"the supervisor (pid {pid}) of the stack on {state.path} is gone without having stopped it; "
                "`auralink down` removes what it left, `auralink up` does so and starts again"
            )

    def call(self, method: str, path: str, limit: float = 60.0) -> dict[str, Any]:
        """Raises:
        NoStackError: no answer; ChaosError: refused.
        """
        control = self.stack.get("control") or {}
        if not control:
            raise NoStackError("this stack was started by a test or program and has no control API")
        return call(control["url"] + path, method, control["token"], limit)


def call(url: str, method: str, token: str, limit: float) -> dict[str, Any]:
    """One HTTP call with a bearer token; its JSON.

    Raises:
        NoStackError: no answer; ChaosError: an answer that is not 2xx, with its text.
    """
    request = urllib.request.Request(url, method=method, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=limit) as response:  # noqa: S310  (our own loopback address)
            body = response.read()
    except urllib.error.HTTPError as error:
        raise ChaosError(_message(error)) from None
    except OSError as error:
        raise NoStackError(f"{method} {url}: {error}") from None
    return dict(json.loads(body)) if body else {}


def _message(error: urllib.error.HTTPError) -> str:
    try:
        body = json.loads(error.read(65_536))
        return str(body.get("message") or body.get("error") or body)
    except (ValueError, OSError):
        return f"{error.code} {error.reason}"
