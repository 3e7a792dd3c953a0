"""Rules, routes and dashboards: what the tools that read them say, and that every metric in them exists."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import tools.gen_alerts
import tools.gen_dashboards
from devstack.cli.matrix import rows
from service_kit.telemetry import Metrics
from tests.deploy import registries
from tests.deploy.promql import grouped, selectors
from tools import alerts

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
ALERTMANAGER = ROOT / "deploy/alertmanager/alertmanager.yml"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertstate", "alertname", "severity", "service", "row"}}
OF_A_TARGET = {"job", "instance"}


def run(tool: str, *arguments: str | Path) -> str:
    """What a tool of Prometheus printed; skips where it is not installed."""
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} (on Debian: apt install prometheus prometheus-alertmanager)")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_generated_files_are_those_of_the_code() -> None:
    for path, text in (tools.gen_alerts.documents() | tools.gen_dashboards.documents()).items():
        assert path.read_text() == text, f"run `make docs`: {path}"


def test_rules_and_what_makes_them_fire() -> None:
    run("promtool", "check", "rules", *sorted(PROMETHEUS.glob("rules/*.yml")))
    run("promtool", "test", "rules", *sorted(PROMETHEUS.glob("tests/*.yml")))


def test_prometheus_can_read_what_dashboards_ask(tmp_path: Path) -> None:
    asked = [expr.replace("$__rate_interval", "1m") for _, expr in _of_dashboards()]
    assert asked
    rules = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    run("promtool", "check", "rules", tmp_path / "asked.yml")


def test_the_configuration_of_prometheus() -> None:
    run("promtool", "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    jobs = {job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    assert jobs >= set(alerts.SERVICES), "rules take a job's name for the service's"


@pytest.mark.parametrize(
    ("severity", "told"), [("critical", "pagerduty,slack"), ("warning", "slack"), ("info", "email"), ("odd", "slack")]
)
def test_who_is_told(severity: str, told: str) -> None:
    run("amtool", "check-config", ALERTMANAGER)
    given = ("config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}")
    assert run("amtool", *given).strip() == told


def test_no_secret_is_in_the_configuration() -> None:
    text = ALERTMANAGER.read_text()
    given = re.findall(r"^\s*(?:- )?(\w*(?:password|key|api_url|token|secret)\w*):", text, re.MULTILINE)
    assert given
    assert all(name.endswith("_file") for name in given)


def test_every_row_and_every_fallback_is_alerted_with_its_runbook() -> None:
    found = alerts.groups()
    assert [alert.labels["row"] for alert in found["rows"]] == [row.id for row in rows()]
    watched = {(alert.labels["service"], alert.labels["rung"]) for alert in found["fallbacks"]}
    assert watched == {(row.service, fallback) for row in rows() for fallback in row.fallbacks}
    for alert in (*found["rows"], *found["fallbacks"]):
        for page in alert.annotations["runbook"].split():
            assert (ROOT / page).is_file(), page


def test_every_other_alert_is_explained() -> None:
    explained = set(re.findall(r"^### (\w+)$", (ROOT / alerts.OBSERVE).read_text(), re.MULTILINE))
    assert explained == {alert.name for alert in alerts.platform()}


@pytest.fixture(scope="module")
def metrics() -> dict[str, Metrics]:
    return asyncio.run(registries.metrics())


def test_a_rows_alert_watches_its_circuits_and_no_others(metrics: dict[str, Metrics]) -> None:
    for row in rows():
        wanted = re.fullmatch(r'service="([^"]*)",dependency=(~?)"([^"]*)"', alerts.matcher(row))
        assert wanted
        circuits = {name: one for name, one in _circuits(metrics[wanted[1]]) if re.fullmatch(wanted[3], name)}
        assert circuits, f"{row.id}: no such circuit"
        assert all(one == row.label for one in circuits.values()), (row.id, circuits)


def _circuits(seen: Metrics) -> Iterator[tuple[str, str]]:
    """Each circuit of a service with the label of its row."""
    labels = {row.dependency: row.label for row in rows() if row.service == seen.service}
    for family in text_string_to_metric_families(seen.render().decode()):
        for sample in family.samples if family.name == "circuit_breaker_state" else ():
            name = sample.labels["dependency"]
            several = "A2" if ":" in name else "A5" if seen.service == "ai-core" else ""
            yield name, labels.get(name, several)


def test_every_metric_that_is_asked_for_exists(metrics: dict[str, Metrics]) -> None:
    known = _known(metrics)
    for where, expr in (*_of_rules(), *_of_dashboards()):
        named = selectors(expr)
        assert named, f"{where}: {expr}"
        for name, labels in named:
            assert name in known, f"{where}: there is no metric {name}"
            assert labels <= known[name] | OF_A_TARGET, f"{where}: {name} has the labels {known[name]}"
        kept = set().union(*(known[name] for name, _ in named)) | OF_A_TARGET
        assert grouped(expr) <= kept, f"{where}: {expr}"


def _known(metrics: dict[str, Metrics]) -> dict[str, set[str]]:
    """Every metric of the services and its labels; a name that two services have means the same in both."""
    known: dict[str, set[str]] = {name: set(labels) for name, labels in OF_PROMETHEUS.items()}
    for seen in metrics.values():
        collectors: dict[str, Any] = seen.registry._names_to_collectors
        for name, collector in collectors.items():
            known[name] = {*collector._labelnames, "le"} if name.endswith("_bucket") else {*collector._labelnames}
        for line in seen.render().decode().splitlines():  # the parser would put _total behind the contract's counter
            if (sample := re.match(r"(\w+)(?:\{(.*)\})? ", line)) and sample[1] not in known:
                known[sample[1]] = set(re.findall(r'(\w+)="', sample[2] or ""))
    return known


def _of_rules() -> Iterator[tuple[str, str]]:
    for path in sorted(PROMETHEUS.glob("rules/*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from ((f"{path.name} {rule['alert']}", rule["expr"]) for rule in group["rules"])


def _of_dashboards() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield from ((f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"])


def test_dashboards_are_complete_and_fit_their_grid() -> None:
    assert {path.stem for path in DASHBOARDS} == {"platform", "matrix", *alerts.SERVICES}
    drawn = {target["legendFormat"] for panel in _panels("matrix") for target in panel["targets"]}
    assert all(any(legend.startswith(f"{row.label} ") for legend in drawn) for row in rows())
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in _panels(path.stem):
            grid = panel["gridPos"]
            cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
            assert not cells & taken, f"{path.name}: {panel['title']} lies on another one"
            assert max(x for x, _ in cells) < tools.gen_dashboards.WIDTH
            taken |= cells


def _panels(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / f"deploy/grafana/dashboards/{name}.json").read_text())["panels"]
    return found


def test_datasources_of_the_dashboards_are_provisioned() -> None:
    provisioned = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/auralink.yml").read_text())
    uids = {source["uid"] for source in provisioned["datasources"]}
    used = {panel["datasource"]["uid"] for path in DASHBOARDS for panel in _panels(path.stem)}
    assert used <= uids
