"""Toxiproxy's HTTP admin API. Errors are ``{"error": text, "status": code}`` as there; a browser is refused as there,
since any web page could otherwise reach this port."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from devstack.faultproxy.proxy import AddressError, ConflictError, Proxies, Proxy
from devstack.faultproxy.toxics import Toxic, ToxicError

VERSION = "2.12.0"  # of the API that is spoken here
PROXIES = web.AppKey("proxies", Proxies)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(proxies: Proxies) -> web.Application:
    app = web.Application(middlewares=[guard], client_max_size=2**20)
    app[PROXIES] = proxies
    app.add_routes(
        [
            web.get("/version", version),
            web.get("/proxies", list_proxies),
            web.post("/proxies", create_proxy),
            web.post("/populate", populate),
            web.post("/reset", reset),
            web.get("/proxies/{proxy}", show_proxy),
            web.post("/proxies/{proxy}", update_proxy),
            web.patch("/proxies/{proxy}", update_proxy),
            web.delete("/proxies/{proxy}", delete_proxy),
            web.get("/proxies/{proxy}/toxics", list_toxics),
            web.post("/proxies/{proxy}/toxics", create_toxic),
            web.get("/proxies/{proxy}/toxics/{toxic}", show_toxic),
            web.post("/proxies/{proxy}/toxics/{toxic}", update_toxic),
            web.patch("/proxies/{proxy}/toxics/{toxic}", update_toxic),
            web.delete("/proxies/{proxy}/toxics/{toxic}", delete_toxic),
        ]
    )
    return app


class NotFoundError(Exception):
    """No such proxy or toxic."""


def problem(status: int, text: str) -> web.Response:
    return web.json_response({"error": text, "status": status}, status=status)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses browsers, and turns what goes wrong into Toxiproxy's error body."""
    if request.headers.get("User-Agent", "").startswith("Mozilla/") or "Origin" in request.headers:
        return problem(403, "User agent not allowed")
    try:
        return await handler(request)
    except NotFoundError as error:
        return problem(404, f"{error} not found")
    except ConflictError as error:
        return problem(409, str(error))
    except KeyError as error:
        return problem(400, f"missing required field: {error.args[0]}")
    except (ToxicError, AddressError, json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        return problem(400, f"bad request body: {error}")


async def body_of(request: web.Request) -> dict[str, Any]:
    content = await request.json()
    if not isinstance(content, dict):
        raise TypeError("a JSON object is expected")
    return content


def proxy_of(request: web.Request) -> Proxy:
    proxy = request.app[PROXIES].by_name.get(request.match_info["proxy"])
    if proxy is None:
        raise NotFoundError("proxy")
    return proxy


def toxic_of(request: web.Request) -> tuple[Proxy, Toxic]:
    proxy = proxy_of(request)
    toxic = proxy.toxics.get(request.match_info["toxic"])
    if toxic is None:
        raise NotFoundError("toxic")
    return proxy, toxic


async def version(_: web.Request) -> web.Response:
    return web.json_response({"version": VERSION})


async def list_proxies(request: web.Request) -> web.Response:
    return web.json_response({name: proxy.as_json() for name, proxy in request.app[PROXIES].by_name.items()})


async def create_proxy(request: web.Request) -> web.Response:
    proxy = await request.app[PROXIES].create(await body_of(request))
    return web.json_response(proxy.as_json(), status=201)


async def populate(request: web.Request) -> web.Response:
    bodies = await request.json()
    if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
        raise TypeError("an array of proxies is expected")
    made = await request.app[PROXIES].populate(bodies)
    return web.json_response({"proxies": [proxy.as_json() for proxy in made]}, status=201)


async def reset(request: web.Request) -> web.Response:
    await request.app[PROXIES].reset()
    return web.Response(status=204)


async def show_proxy(request: web.Request) -> web.Response:
    return web.json_response(proxy_of(request).as_json())


async def update_proxy(request: web.Request) -> web.Response:
    proxy = proxy_of(request)
    await request.app[PROXIES].update(proxy.name, await body_of(request))
    return web.json_response(proxy.as_json())


async def delete_proxy(request: web.Request) -> web.Response:
    await request.app[PROXIES].delete(proxy_of(request).name)
    return web.Response(status=204)


async def list_toxics(request: web.Request) -> web.Response:
    return web.json_response([toxic.as_json() for toxic in proxy_of(request).toxics.values()])


async def create_toxic(request: web.Request) -> web.Response:
    proxy = proxy_of(request)
    toxic = Toxic.parse(await body_of(request))
    if toxic.name in proxy.toxics:
        raise ConflictError("toxic already exists")
    proxy.put_toxic(toxic)
    return web.json_response(toxic.as_json())


async def show_toxic(request: web.Request) -> web.Response:
    return web.json_response(toxic_of(request)[1].as_json())


async def update_toxic(request: web.Request) -> web.Response:
    proxy, before = toxic_of(request)
    toxic = Toxic.parse(await body_of(request), before)
    proxy.put_toxic(toxic)
    return web.json_response(toxic.as_json())


async def delete_toxic(request: web.Request) -> web.Response:
    proxy, toxic = toxic_of(request)
    proxy.remove_toxic(toxic.name)
    return web.Response(status=204)
