"""From an open circuit to a message and back, through a real Prometheus and Alertmanager.

Their configuration is the committed one; only addresses and intervals are others. What is scraped are the services'
own metrics, served by this test in place of the services; what is sent is received by this test as well.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from devstack.ports import Ports
from resilience import Mode
from resilience.circuit import CircuitState
from service_kit.telemetry import Metrics
from tests.harness.platform import eventually
from tools.alerts import SERVICES

DEPLOY = Path(__file__).parents[2] / "deploy"
TOOLS = ("prometheus", "prometheus-alertmanager")
INTERVAL = "500ms"
HELD = "1s"  # in place of every rule's `for`
PATIENT = "20s"  # that of rules about a service that does not answer: on a busy machine this test may be late
LIMIT = 30.0  # s for anything to arrive
STOP_LIMIT = 5.0  # s
ROW = "dashboard.postgres"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)} (Debian packages of these names)"
)


class World:
    """What the services say, and what was sent about it."""

    def __init__(self) -> None:
        self.services = {name: Metrics(name) for name in SERVICES}
        self.received: list[tuple[str, Any]] = []  # receiver and alert
        self.base = ""
        for metrics in self.services.values():
            metrics.mode(Mode.NORMAL, 0.0)

    async def metrics(self, request: web.Request) -> web.Response:
        """As the service of that name answers /metrics."""
        return web.Response(body=self.services[request.match_info["name"]].render(), content_type="text/plain")

    async def hook(self, request: web.Request) -> web.Response:
        """Takes what Alertmanager sends."""
        sent = await request.json()
        self.received += [(request.match_info["name"], alert) for alert in sent["alerts"]]
        return web.Response()

    def told(self, status: str, **labels: str) -> set[str]:
        """The receivers that were told of such an alert."""
        return {
            receiver
            for receiver, alert in self.received
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        }


def _prometheus(world: World, alertmanager: int, folder: Path) -> Path:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    target = world.base.removeprefix("http://")
    config["scrape_configs"] = [
        {"job_name": name, "metrics_path": f"/metrics/{name}", "static_configs": [{"targets": [target]}]}
        for name in SERVICES
    ]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
    config["rule_files"] = [str(folder / "*.rules.yml")]
    for path in (DEPLOY / "prometheus/rules").glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["for"] = PATIENT if rule["alert"] in ("ServiceDown", "ServiceMissing") else HELD
                rule.pop("keep_firing_for", None)
        (folder / f"{path.stem}.rules.yml").write_text(yaml.safe_dump(rules))
    return _written(folder / "prometheus.yml", config)


def _alertmanager(world: World, folder: Path) -> Path:
    config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": INTERVAL, "group_interval": INTERVAL}
    config["receivers"] = [
        {"name": one["name"], "webhook_configs": [{"url": f"{world.base}/hook/{one['name']}", "send_resolved": True}]}
        for one in config["receivers"]
    ]
    return _written(folder / "alertmanager.yml", config)


def _written(path: Path, config: object) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


@asynccontextmanager
async def _process(log: Path, *command: str) -> AsyncIterator[None]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_LIMIT)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _served(world: World) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes([web.get("/metrics/{name}", world.metrics), web.post("/hook/{name}", world.hook)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        world.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[World, Callable[[], Any]]]:
    """The world, and what Alertmanager knows when asked."""
    world, ports = World(), Ports()
    watching, telling = ports.free("prometheus"), ports.free("alertmanager")
    async with AsyncExitStack() as stack:
        stack.callback(ports.release)
        await stack.enter_async_context(_served(world))
        alertmanager, prometheus = _alertmanager(world, tmp_path), _prometheus(world, telling, tmp_path)
        await stack.enter_async_context(
            _process(
                tmp_path / "alertmanager.log",
                "prometheus-alertmanager",
                f"--config.file={alertmanager}",
                f"--storage.path={tmp_path / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{telling}",
                "--cluster.listen-address=",
            )
        )
        await stack.enter_async_context(
            _process(
                tmp_path / "prometheus.log",
                "prometheus",
                f"--config.file={prometheus}",
                f"--storage.tsdb.path={tmp_path / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{watching}",
            )
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def known() -> Any:
            async with session.get(f"http://127.0.0.1:{telling}/api/v2/alerts") as answer:
                return await answer.json()

        yield world, known


async def test_an_open_circuit_is_told_muted_in_an_emergency_and_resolved(
    world: tuple[World, Callable[[], Any]],
) -> None:
    platform, known = world
    dashboard = platform.services["dashboard"]
    dashboard.circuit("postgres", CircuitState.OPEN)
    dashboard.mode(Mode.DEGRADED, 0.0)

    async def told(status: str, **labels: str) -> bool:
        return platform.told(status, **labels) >= {"pagerduty", "slack"}

    await eventually(lambda: told("firing", alertname="ServiceDegraded", row=ROW), "the open circuit is told", LIMIT)
    assert "email" not in platform.told("firing", row=ROW)
    alert = next(alert for _, alert in platform.received if alert["labels"].get("row") == ROW)
    assert alert["annotations"]["runbook"] == f"docs/runbooks/{ROW}.md"
    assert alert["labels"].items() >= {"severity": "critical", "service": "dashboard", "label": "D1"}.items()

    dashboard.mode(Mode.EMERGENCY, 0.0)
    await eventually(lambda: told("firing", alertname="EmergencyMode"), "the emergency is told", LIMIT)
    dashboard.circuit("webrtc", CircuitState.OPEN)
    platform.services["webrtc"].circuit("redis", CircuitState.OPEN)

    async def muted() -> bool:
        rows = {one["labels"].get("row"): bool(one["status"]["inhibitedBy"]) for one in await known()}
        return rows.items() >= {"dashboard.webrtc": True, "webrtc.redis": False}.items()

    await eventually(muted, "one more row says nothing new in an emergency, another service's row does", LIMIT)
    await eventually(lambda: told("firing", row="webrtc.redis"), "the other service's row is told", LIMIT)
    assert not platform.told("firing", row="dashboard.webrtc")

    dashboard.mode(Mode.NORMAL, 0.0)
    await eventually(lambda: told("resolved", alertname="EmergencyMode"), "the emergency's end is told", LIMIT)
    for name in ("postgres", "webrtc"):
        dashboard.circuit(name, CircuitState.CLOSED)
    await eventually(lambda: told("resolved", alertname="ServiceDegraded", row=ROW), "it is told that it heals", LIMIT)
