"""What watches, as configured: names, ports and files that are used in one file exist in the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OBSERVERS = {name: one for name, one in SERVICES.items() if one.get("profiles") == ["observability"]}
BARE = {"otel-collector"}  # images without anything that could ask for their health


def _load(path: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / path).read_text())


def test_there_is_one_of_each() -> None:
    assert set(OBSERVERS) == {"prometheus", "alertmanager", "grafana", "otel-collector", "jaeger"}
    needed = {name for one in SERVICES.values() for name in one.get("depends_on", ())}
    assert not needed & set(OBSERVERS), "no service needs to be watched"


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_an_observer_is_limited_confined_and_asked_for_its_health(name: str) -> None:
    one = OBSERVERS[name]
    assert one["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert one["cap_drop"] == ["ALL"]
    assert ("healthcheck" in one) == (name not in BARE)
    for volume in one.get("volumes", ()):
        source = volume.partition(":")[0]
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], volume
        assert not source.startswith("./") or volume.endswith(":ro")


def test_prometheus_finds_the_services_where_they_are() -> None:
    for job in _load("prometheus/prometheus.yml")["scrape_configs"]:
        for found in job.get("dns_sd_configs", ()):
            assert found["names"] == [job["job_name"]]
            instances = _by_name(job["job_name"])
            assert instances
            assert all(str(found["port"]) in _exposed(one) for one in instances)
        for found in job.get("static_configs", ()):
            for target in found["targets"]:
                host = target.partition(":")[0]
                assert host in OBSERVERS or host == "127.0.0.1"


def _by_name(name: str) -> list[Any]:
    """The services that a name finds: its own, and those that have it as an alias."""
    aliases = {
        one: config.get("networks", {}).get("default", {}).get("aliases", ()) for one, config in SERVICES.items()
    }
    return [config for one, config in SERVICES.items() if name == one or name in aliases[one]]


def _exposed(service: Any) -> set[str]:
    ports = re.search(r"^EXPOSE (.+)$", (ROOT / service["build"]["dockerfile"]).read_text(), re.MULTILINE)
    return set(ports[1].split()) if ports else set()


def test_addresses_of_observers_name_observers() -> None:
    texts = [path.read_text() for path in (ROOT / "deploy/grafana/provisioning").rglob("*.yml")]
    texts.append((ROOT / "deploy/otel-collector/config.yml").read_text())
    hosts = {host for text in texts for host in re.findall(r"(?:http://|endpoint: )([a-z][\w-]*):\d+", text)}
    assert hosts == {"prometheus", "alertmanager", "jaeger"}


@pytest.mark.parametrize("file", ["config.yml", "jaeger.yml"])
def test_pipelines_are_made_of_what_is_configured(file: str) -> None:
    config = _load(f"otel-collector/{file}")
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= config[kind].keys()
    assert set(config["service"].get("extensions", ())) <= config.get("extensions", {}).keys()
