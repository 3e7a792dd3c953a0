"""A small service built on the kit, run by the tests in a process of its own: python kit_sample.py."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from resilience.matrix import Priority, Row
from resilience.outcome import Served
from service_kit import context, lifecycle
from service_kit.errors import DependencyUnavailable, translate
from service_kit.http import create_app, served_json
from service_kit.rpc_server import create_server
from service_kit.runtime import ServiceRuntime
from service_kit.settings import ServiceSettings, load

ROW = Row(
    id="sample.store",
    label="S1",
    service="sample",
    dependency="store",
    title="Store",
    priority=Priority.P0,
    impact="critical",
    max_failures=2,
    open_seconds=30.0,
    call_timeout=0.5,
    fallbacks=("memory-cache",),
    promise="a copy",
    recovery="at once",
    data_loss="none",
    user_text="The store is temporarily unavailable.",
)


class Thing(BaseModel):
    name: str = Field(min_length=1, max_length=20)
    size: int = 1


def make_router(runtime: ServiceRuntime) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")
    policy = runtime.policy(ROW)

    @routes.get("/hello")
    async def hello() -> Response:
        return served_json(Served({"hello": "world"}), {"hello": "world"})

    @routes.get("/stale")
    async def stale() -> Response:
        served = Served("copy", (policy.degradation("memory-cache"),), as_of=runtime.clock.time() - 5.2)
        return served_json(served, {"value": served.value})

    @routes.get("/call/{outcome}")
    async def call(outcome: str) -> Response:
        async def work() -> str:
            if outcome == "fail":
                raise ConnectionRefusedError("10.0.0.1:5432 said no")
            return outcome

        try:
            return served_json(await policy.serve(work), {"value": outcome})
        except ConnectionRefusedError as error:
            raise translate(error, policy) from error

    @routes.post("/things", status_code=201)
    async def make(thing: Thing) -> Thing:
        return thing

    @routes.get("/things/{thing_id}")
    async def one(thing_id: int, q: Annotated[str, Query(max_length=5)] = "") -> dict[str, object]:
        return {"id": thing_id, "q": q}

    @routes.get("/slow")
    async def slow(seconds: float = 1.0) -> Response:
        await asyncio.sleep(seconds)
        return Response("done")

    @routes.get("/stubborn")
    async def stubborn() -> Response:
        try:
            await asyncio.sleep(60)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1.5)
        return Response("late")

    @routes.get("/patient")
    async def patient() -> Response:
        context.allow(5.0)
        await asyncio.sleep(0.6)
        return Response("patient")

    @routes.get("/events")
    async def events() -> StreamingResponse:
        context.allow(None)

        async def lines() -> AsyncIterator[str]:
            number = 0
            while True:
                yield f"data: {number}\n\n"
                number += 1
                await asyncio.sleep(0.05)

        return StreamingResponse(lines(), media_type="text/event-stream")

    @routes.get("/crash")
    async def crash() -> Response:
        raise RuntimeError("postgresql://user:hunter2@db/secret-table")

    @routes.get("/queued")
    async def queued() -> Response:
        raise DependencyUnavailable(
            "Saved.",
            retry_after=12.2,
            queued=True,
            operation_id="op1",
            status_url="/api/v1/operations/op1",
            degradations=[policy.degradation("redis-queue")],
        )

    return routes


async def main() -> None:
    settings = load(ServiceSettings)
    runtime = ServiceRuntime("sample", settings)
    app = create_app(runtime, routers=[make_router(runtime)], title="Sample")
    await lifecycle.serve(runtime, app, create_server(runtime, lambda _server: None))


if __name__ == "__main__":
    lifecycle.run(main)
