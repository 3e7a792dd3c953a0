"""The pages: the console with the live matrix and a small client, the data behind it, and the page of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from google.protobuf.json_format import MessageToDict

from dashboard.inbound.http.doors import AnyId
from resilience import Row, as_json
from service_kit.http import problem_responses
from service_kit.runtime import ServiceRuntime

STATIC = Path(__file__).parent.parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_FILES = {str(path.relative_to(STATIC)): _TYPES[path.suffix] for path in STATIC.glob("**/*") if path.suffix in _TYPES}
_POLICY = "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
_PAGE_HEADERS = {
    "content-security-policy": _POLICY,
    "cache-control": "no-cache",
    "referrer-policy": "same-origin",
}
# Where the signalling is, only the WebRTC service knows: its answer to a ticket names the socket.
_CALL_HEADERS = {**_PAGE_HEADERS, "content-security-policy": f"{_POLICY}; connect-src 'self' ws: wss:"}

Peer = Callable[[], Awaitable[Any]]


def create_router(runtime: ServiceRuntime, rows: tuple[Row, ...], peers: Mapping[str, Peer]) -> APIRouter:
    """``peers``: for each other service a call that returns its GetStatusResponse."""
    router = APIRouter()
    promises = {str(row["id"]): row for row in as_json(rows)}

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "console.html", headers=_PAGE_HEADERS)

    @router.get("/call/{room_id}", include_in_schema=False)
    async def call(room_id: AnyId) -> Response:  # noqa: ARG001 - the page reads it from its own address
        return FileResponse(STATIC / "call" / "call.html", headers=_CALL_HEADERS)

    @router.get("/static/{name:path}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in _FILES:
            return Response(status_code=404)
        return FileResponse(STATIC / name, media_type=_FILES[name], headers=_PAGE_HEADERS)

    @router.get("/api/v1/matrix", tags=["console"], responses=problem_responses(503))
    async def matrix() -> dict[str, Any]:
        """The live matrix of all services; one that does not answer within half a second is listed as unreachable."""
        answers = await asyncio.gather(*(_ask(name, peer) for name, peer in peers.items()))
        own = {"service": runtime.name, "mode": runtime.mode.value, "reachable": True, "rows": _own(runtime, promises)}
        return {"services": [own, *answers]}

    return router


def _own(runtime: ServiceRuntime, promises: Mapping[str, Mapping[str, object]]) -> list[dict[str, Any]]:
    return [{**row, **_promise(promises.get(row["row"], {}))} for row in runtime.status()]


def _promise(row: Mapping[str, object]) -> dict[str, object]:
    return {name: row[name] for name in ("title", "promise", "user_text") if name in row}


async def _ask(name: str, peer: Peer) -> dict[str, Any]:
    try:
        answer = MessageToDict(
            await peer(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except Exception:  # noqa: BLE001 - whatever it is, the page shows the service as unreachable
        return {"service": name, "mode": "unknown", "reachable": False, "rows": []}
    rows = [{**row, "queue_depth": int(row["queue_depth"])} for row in answer["rows"]]
    return {"service": name, "mode": answer["mode"], "reachable": True, "rows": rows}
