"""What must stay true of the Dockerfiles and the compose file; read as text, so that no engine is needed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted([*ROOT.glob("services/*/Dockerfile"), *ROOT.glob("devstack/*/Dockerfile")])
MANIFESTS = [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
MANIFESTS += [*ROOT.glob("devstack/pyproject.toml"), *ROOT.glob("devstack/*/pyproject.toml")]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
every_image = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)


def test_every_service_has_an_image() -> None:
    assert {path.parent for path in ROOT.glob("services/*/pyproject.toml")} <= {path.parent for path in DOCKERFILES}


@every_image
def test_an_image_is_built_from_the_lock_of_the_whole_workspace(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    for manifest in MANIFESTS:
        folder = manifest.parent.relative_to(ROOT)
        assert f"COPY {folder}/pyproject.toml {folder}/" in text
    assert text.count("uv sync --locked --no-dev") == text.count("uv sync") == 2


@every_image
def test_images_share_their_bases_and_the_version_of_uv(dockerfile: Path) -> None:
    bases = re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)
    version = re.search(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert version
    python = "python:3.11-slim-bookworm"
    assert bases == [f"ghcr.io/astral-sh/uv:{version[1]}", python, python]


@every_image
def test_an_image_runs_as_nobody_special_and_stops_on_a_signal(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert "\nUSER 10001:10001\n" in text
    assert re.search(r'^CMD \["python", "-m", "\w+"', text, re.MULTILINE), "a shell would not pass SIGTERM on"


def test_ports_are_published_on_this_machine_only() -> None:
    published = re.findall(r'- "(\S+:\d+)"$', COMPOSE, re.MULTILINE)
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_variable_of_the_compose_file_is_explained() -> None:
    named = set(re.findall(r"\$\{(\w+)", COMPOSE)) | set(re.findall(r"^ +([A-Z][A-Z_]+):$", COMPOSE, re.MULTILINE))
    explained = set(re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named == explained
