"""The HTTP application of a service: FastAPI without its own telemetry, our edge around it, problems for errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from service_kit import admin as admin_routes
from service_kit import health
from service_kit.runtime import ServiceRuntime

from . import problems
from .edge import Edge, Shape


def create_app(
    runtime: ServiceRuntime,
    *,
    routers: Sequence[APIRouter] = (),
    title: str,
    version: str = "0.1.0",
    description: str = "",
    admin: bool = True,
    error_shapes: Mapping[str, Shape] | None = None,
) -> FastAPI:
    """The application: the service's routers first (routes are matched in order), then health and admin.

    ``error_shapes``: by the beginning of the path, how errors look that are no problem+json.
    """
    development = runtime.settings.environment == "development"
    app = FastAPI(
        title=title,
        version=version,
        description=description,
        docs_url="/docs" if development else None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.problem_responses(400, 405, 413, 422, 500, 504),
        middleware=[Middleware(Edge, runtime=runtime, shapes=error_shapes)],
        # FastAPI traces by itself as soon as there is a tracer provider; the edge's own span is far cheaper.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    problems.install(app, runtime)
    for router in routers:
        app.include_router(router)
    app.include_router(health.router(runtime))
    if admin:
        app.include_router(admin_routes.router(runtime))
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    original = app.openapi

    def openapi() -> dict[str, Any]:
        return problems.describe(original())

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to change the document
