"""Security, seen from outside: two instances, real servers, and Redis killed while somebody logs out."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio

from dashboard.inbound.http.doors import COOKIE
from devstack.stack import Stack
from devstack.topology import Topology
from service_kit.tokens import AUDIENCE, ISSUER

pytestmark = pytest.mark.asyncio(loop_scope="session")

PASSWORD = "correct horse battery"
BOTH = ("dashboard", "dashboard-2")
numbers = count(1)
STRICT = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


class Answer:
    """An answer, read completely."""

    def __init__(self, status: int, headers: Any, cookies: Any, raw: bytes) -> None:
        self.status = status
        self.headers = headers
        self.cookies = cookies
        self.raw = raw

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Platform:
    """The two instances as a client sees them; every test comes from an address of its own."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self.stack = stack
        self._session = session
        self.address = f"198.51.100.{next(numbers)}"

    async def __call__(
        self, method: str, path: str, token: str | None = None, at: str = "dashboard", **options: Any
    ) -> Answer:
        headers = {"x-forwarded-for": self.address, **options.pop("headers", {})}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        async with self._session.request(method, self.stack.url(at) + path, headers=headers, **options) as answer:
            return Answer(answer.status, answer.headers, answer.cookies, await answer.read())

    async def register(self) -> dict[str, Any]:
        """A new account, logged in."""
        email = f"{time.time_ns()}@example.org"
        body = {"email": email, "password": PASSWORD, "display_name": "Somebody"}
        assert (await self("POST", "/api/v1/users", json=body)).status == 201
        login = await self.login(email)
        return {"email": email, "id": login.body["user"]["id"], "token": login.body["access_token"], "login": login}

    async def login(self, email: str, password: str = PASSWORD, **options: Any) -> Answer:
        body = {"email": email, "password": password}
        return await self("POST", "/api/v1/auth/login", json=body, **options)

    async def me(self, token: str, at: str = "dashboard") -> Answer:
        return await self("GET", "/api/v1/auth/me", token, at)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two Dashboards behind a proxy that they trust: us. The second one is in production."""
    env = {"TRUSTED_PROXIES": "127.0.0.0/8", "RATE_LIMIT_LOGIN": "1/h:12"}
    topology = Topology(
        dashboards=2,
        only=frozenset({"postgres", "redis", *BOTH}),
        proxied=False,
        env=env,
        service_env={"dashboard-2": {"ENVIRONMENT": "production"}},
    )
    async with Stack(tmp_path_factory.mktemp("security"), topology, port_base=None) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def platform(stack: Stack) -> AsyncIterator[Platform]:
    """Both instances, serving."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        platform = Platform(stack, session)
        for at in BOTH:
            await eventually(platform, at, lambda answer: answer.status == 200)
        yield platform
        await stack.heal("redis")
        for at in BOTH:
            await circuit(platform, at, "closed")


async def eventually(platform: Platform, at: str, good: Any) -> None:
    """Until the list of accounts is served so."""
    end = time.monotonic() + 15
    while not good(await platform("GET", "/api/v1/users", platform.stack.admin_token, at)):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def circuit(platform: Platform, at: str, wanted: str) -> None:
    """Until the instance's circuit of Redis is in that state."""
    end = time.monotonic() + 15
    while True:
        page = await platform("GET", "/health/detailed", at=at)
        if page.body["dependencies"]["redis"]["circuit"] == wanted:
            return
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


# -- sessions


async def test_a_login_makes_a_new_session_whatever_came_with_it(platform: Platform) -> None:
    account = await platform.register()
    chosen = jwt.encode({"sub": account["id"], "sid": "fixed"}, "attacker" * 5, algorithm="HS256")
    seen = set()
    for cookie in (chosen, account["token"], "fixed"):
        login = await platform.login(account["email"], headers={"cookie": f"{COOKIE}={cookie}"})
        token = login.body["access_token"]
        assert login.cookies[COOKIE].value == token
        seen.add(session_of(token))
    assert len(seen) == 3
    assert not seen & {"fixed", session_of(account["token"])}
    assert all(len(base64.urlsafe_b64decode(one + "==")) >= 16 for one in seen), "128 random bits at least"


def session_of(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sid"])


async def test_the_cookie_is_for_this_site_and_not_for_scripts(platform: Platform) -> None:
    account = await platform.register()
    cookie = account["login"].headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie, "this is development, over plain http"
    production = await platform.login(account["email"], at="dashboard-2")
    assert "secure" in production.headers["set-cookie"].lower()
    answer = await platform("GET", "/api/v1/auth/me", headers={"cookie": f"{COOKIE}={account['token']}"})
    assert answer.status == 200
    logout = await platform("POST", "/api/v1/auth/logout", headers={"cookie": f"{COOKIE}={account['token']}"})
    assert "max-age=0" in logout.headers["set-cookie"].lower()


async def test_forged_tokens_open_nothing(platform: Platform) -> None:
    account = await platform.register()
    claims = jwt.decode(account["token"], options={"verify_signature": False})
    head, payload, signature = account["token"].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    admin = base64.urlsafe_b64encode(json.dumps({**claims, "role": "admin"}).encode()).rstrip(b"=").decode()
    forged = [
        f"{none}.{payload}.",
        f"{none}.{payload}.{signature}",
        f"{head}.{admin}.{signature}",
        f"{head}.{payload}.{signature[:-3]}AAA",
        jwt.encode(claims, "x" * 32, algorithm="HS256"),
        account["token"][:-1],
        "",
        "a.b.c",
        "x" * 5000,
    ]
    for token in forged:
        for path in ("/api/v1/auth/me", f"/api/v1/users/{account['id']}", "/api/v1/users"):
            assert (await platform("GET", path, token)).status == 401, token[:60]


async def test_well_signed_tokens_need_an_open_session_and_time_left(platform: Platform) -> None:
    """As if the signing secret were known: an invented session is still none."""
    account = await platform.register()
    secret = platform.stack.state.secret("jwt")
    now = int(time.time())
    known = {"iss": ISSUER, "aud": AUDIENCE, "sub": account["id"], "role": "user", "iat": now}
    live = session_of(account["token"])
    for claims in ({"sid": "guessed", "exp": now + 60}, {"sid": "", "exp": now + 60}, {"sid": live, "exp": now - 60}):
        assert (await platform.me(jwt.encode({**known, **claims}, secret, algorithm="HS256"))).status == 401


async def test_a_session_is_over_on_both_instances_after_the_logout(platform: Platform) -> None:
    account = await platform.register()
    for at in BOTH:
        assert (await platform.me(account["token"], at)).status == 200
    assert (await platform("POST", "/api/v1/auth/logout", account["token"])).status == 204
    assert (await platform.me(account["token"])).status == 401
    await refused_within(platform, account["token"], "dashboard-2", 2.0)


async def refused_within(platform: Platform, token: str, at: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (await platform.me(token, at)).status != 401:
        assert time.monotonic() < end, f"still accepted after {seconds:g} s"
        await asyncio.sleep(0.05)


async def test_a_logout_without_redis_holds_on_both_instances_and_after_its_return(platform: Platform) -> None:
    ended, kept = await platform.register(), await platform.register()
    for account in (ended, kept):
        for at in BOTH:
            assert (await platform.me(account["token"], at)).status == 200
    lines = said_away(platform.stack)
    await platform.stack.kill("redis")
    assert (await platform("POST", "/api/v1/auth/logout", ended["token"])).status == 204
    assert (await platform.me(ended["token"])).status == 401
    await refused_within(platform, ended["token"], "dashboard-2", 4.0)
    for at in BOTH:
        for _ in range(10):
            answer = await platform.me(kept["token"], at)
            assert answer.status == 200
        assert answer.headers["x-fallback-used"] == "memory-sessions"
        assert "ratelimit" not in answer.headers, "nothing is known of a limit that is off"
    await platform.stack.heal("redis")
    for at in BOTH:
        await circuit(platform, at, "closed")
        assert (await platform.me(ended["token"], at)).status == 401
        assert (await platform.me(kept["token"], at)).status == 200
    assert [after - before for before, after in zip(lines, said_away(platform.stack), strict=True)] == [1, 1]


def said_away(stack: Stack) -> list[int]:
    """How often each instance has said that Redis is away."""
    text = "Redis is away: sessions in memory, rate limits off"
    return [log_of(stack, at).count(text) for at in BOTH]


def log_of(stack: Stack, at: str) -> str:
    """All that an instance has logged."""
    return Path(stack.state.log(at)).read_text(encoding="utf-8")


async def test_the_sessions_of_a_deleted_account_end(platform: Platform) -> None:
    account = await platform.register()
    other = (await platform.login(account["email"])).body["access_token"]
    for at in BOTH:
        assert (await platform.me(other, at)).status == 200
    assert (await platform("DELETE", f"/api/v1/users/{account['id']}", account["token"])).status == 204
    for token in (other, account["token"]):
        assert (await platform.me(token)).status == 401
        await refused_within(platform, token, "dashboard-2", 2.0)


# -- data


async def test_nobody_reads_anothers_account_with_the_database_or_without(platform: Platform) -> None:
    alice, mallory = await platform.register(), await platform.register()
    path = f"/api/v1/users/{alice['id']}"

    async def theirs() -> None:
        for at in BOTH:
            for method, body in (("GET", None), ("PATCH", {"display_name": "x"}), ("DELETE", None)):
                answer = await platform(method, path, mallory["token"], at, json=body)
                assert answer.status in (403, 404)
                assert alice["email"].encode() not in answer.raw
        assert (await platform("GET", "/api/v1/users", mallory["token"])).status == 403

    for at in BOTH:
        assert (await platform("GET", path, alice["token"], at)).status == 200
    await theirs()
    await platform.stack.kill("postgres")
    try:
        mine = await platform("GET", path, alice["token"])
        assert (mine.status, mine.body["email"]) == (200, alice["email"])
        assert mine.body["stale"] is True
        await theirs()
    finally:
        await platform.stack.heal("postgres")
        for at in BOTH:
            await eventually(platform, at, lambda answer: answer.status == 200)


async def test_logins_are_limited_per_address_over_both_instances_and_say_when_to_come_again(
    platform: Platform,
) -> None:
    answers = [await platform.login(f"{number}@example.org", at=BOTH[number % 2]) for number in range(16)]
    statuses = [answer.status for answer in answers]
    assert statuses.count(401) == 12
    assert set(statuses) == {401, 429}
    refused = answers[-1]
    assert refused.body["error"] == "RATE_LIMITED"
    assert 3400 < int(refused.headers["retry-after"]) <= 3600
    assert refused.headers["ratelimit"].startswith('"login";r=0;t=')
    assert refused.headers["ratelimit-policy"].startswith('"login";q=12;w=')
    assert "x-circuit-state" not in refused.headers
    platform.address = "203.0.113.77"
    assert (await platform.login("somebody@example.org")).status == 401


async def test_failed_logins_are_limited_per_account_wherever_they_come_from(platform: Platform) -> None:
    account = await platform.register()
    for number in range(10):
        platform.address = f"203.0.113.{number}"
        assert (await platform.login(account["email"], "wrong", at=BOTH[number % 2])).status == 401
    platform.address = "203.0.113.99"
    refused = await platform.login(account["email"])
    assert (refused.status, refused.body["error"]) == (429, "RATE_LIMITED")
    assert 800 < int(refused.headers["retry-after"]) <= 900


async def test_passwords_and_tokens_are_in_no_log_and_in_no_answer(platform: Platform) -> None:
    account = await platform.register()
    secret = "hunter2-in-no-log"
    answer = await platform.login(account["email"], secret)
    assert secret.encode() not in answer.raw
    body = {"email": "nonsense", "password": secret, "display_name": ""}
    assert secret.encode() not in (await platform("POST", "/api/v1/users", json=body)).raw
    await platform("POST", "/api/v1/auth/login", data=f'{{"email": "x", "password": "{secret}', headers=JSON)
    for at in BOTH:
        log = log_of(platform.stack, at)
        for word in (secret, PASSWORD, account["token"], session_of(account["token"])):
            assert word not in log


JSON = {"content-type": "application/json"}


# -- headers


async def test_every_answer_has_the_security_headers(platform: Platform) -> None:
    account = await platform.register()
    answers = [
        await platform.me(account["token"]),
        await platform.me("nonsense"),
        await platform("GET", "/nowhere"),
        await platform("POST", "/api/v1/auth/login", data="{", headers=JSON),
        await platform("GET", "/health/ready"),
        await platform("GET", "/metrics"),
        await platform("GET", "/admin/queue"),
    ]
    for answer in answers:
        found = {name: answer.headers.get(name) for name in STRICT}
        assert found == STRICT
        assert "strict-transport-security" not in answer.headers, "this is development"
    production = await platform.me(account["token"], "dashboard-2")
    assert production.headers["strict-transport-security"] == "max-age=31536000"


async def test_pages_have_their_own_policy_and_the_documentation_works_in_development(platform: Platform) -> None:
    console = await platform("GET", "/")
    assert console.headers.getall("content-security-policy") == [
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
    ]
    call = await platform("GET", "/call/some-room")
    assert call.headers.getall("content-security-policy") == [
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'; connect-src 'self' ws: wss:"
    ]
    assert (await platform("GET", "/static/call/call.js")).headers["content-type"].startswith("text/javascript")
    for path in ("/call/<script>", "/static/call/../../http/console.py", "/static/call/%2e%2e/console.html"):
        assert (await platform("GET", path)).status in (404, 422), path
    assert (await platform("GET", "/docs", at="dashboard-2")).status == 404
    docs = await platform("GET", "/docs")
    assert docs.status == 200
    assert b"swagger-ui" in docs.raw
    assert "content-security-policy" not in docs.headers


async def test_limits_are_told_on_what_they_limit_and_nowhere_else(platform: Platform) -> None:
    account = await platform.register()
    answer = await platform.me(account["token"])
    assert answer.headers["ratelimit-policy"] == '"address";q=2000;w=2, "user";q=400;w=2'
    assert answer.headers.getall("ratelimit")[0].startswith('"address";r=')
    for path in ("/health/live", "/health/ready", "/health/detailed", "/metrics", "/", "/admin/queue"):
        assert "ratelimit" not in (await platform("GET", path, platform.stack.admin_token)).headers
