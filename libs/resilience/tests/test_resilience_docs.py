"""The documentation is held against the code: its examples run and print what they say, and what it names exists."""

import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import resilience
from resilience.fallback import RungOutcome
from resilience.retry import GiveUpReason

LIBRARY = Path(__file__).parents[1]
README, WHY, REFERENCE, RECIPES = (
    LIBRARY / "README.md",
    *(LIBRARY / "docs" / name for name in ("why.md", "reference.md", "recipes.md")),
)
PAGES = (README, WHY, REFERENCE, RECIPES)
PROBES = LIBRARY.parents[1] / "benchmarks" / "resilience" / "README.md"

RUN = """
import sys
for number, block in enumerate(sys.argv[1:]):
    print(f"-- block {number}", flush=True)
    exec(compile(block, f"block {number}", "exec"), {"__name__": "__main__"})
"""
MODULES = {
    "resilience."
    + ".".join(path.relative_to(LIBRARY / "src" / "resilience").with_suffix("").parts).removesuffix(".__init__")
    for path in (LIBRARY / "src" / "resilience").rglob("*.py")
}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ARROW = re.compile(r"  # → (.*)$", re.MULTILINE)
NAME = re.compile(r"`(resilience(?:\.[a-z_0-9]+)*|[A-Za-z_][A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)*)(?:\([^`]*\))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run_and_print_what_they_say(page: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        return
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, *blocks], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = re.split(r"^-- block \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for number, (block, output) in enumerate(zip(blocks, printed, strict=True)):
        lines = iter(output.splitlines())
        for wanted in ARROW.findall(block):
            assert wanted in lines, f"block {number} of {page.name} did not print {wanted!r} (in order):\n{output}"


# -- names


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Each `##` section's title and body, without code blocks."""
    for part in re.split(r"^## ", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE):
        title, _, body = part.partition("\n")
        yield title, body


def modules_of(*texts: str) -> list[Any]:
    names = {name for text in texts for name in re.findall(r"`(resilience(?:\.[a-z_0-9]+)+)`", text)}
    return [module(name) for name in sorted(names & MODULES)]


@cache
def module(name: str) -> Any:
    """The module; of one that needs a client of a store, only what it defines: the client may not be there."""
    if not name.startswith("resilience.integrations."):
        return importlib.import_module(name)
    tree = ast.parse((LIBRARY / "src" / f"{name.replace('.', '/')}.py").read_text())
    return SimpleNamespace(**{node.name: node for node in tree.body if isinstance(node, ast.ClassDef)})


def resolved(name: str, places: Iterable[Any]) -> Any:
    """What `name` is: something of the package, of these modules or classes, or of Python; `None` if it is nothing."""
    if name == "resilience" or name in MODULES:
        return module(name)
    if name.startswith("resilience."):
        home, _, name = name.rpartition(".")
        places = (module(home),)
    for place in (resilience, *places, builtins):
        found = place
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def parameters_of(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a value, or a type without a constructor of its own
        return set()


def first_cells(body: str) -> Iterator[str]:
    """The names in the first column of the tables that list names."""
    for table in re.findall(r"^\| name \|.*\n\|---.*\n((?:\|.*\n)*)", body, re.MULTILINE):
        for line in table.splitlines():
            yield from NAME.findall(line.split("|")[1])


def test_what_the_reference_lists_exists() -> None:
    listed = 0
    for title, body in sections(REFERENCE.read_text()):
        modules = modules_of(body)
        for name in first_cells(body):
            listed += 1
            assert resolved(name, modules) is not None, f"{title}: {name!r} does not exist"
    assert listed > 150


def test_what_else_the_reference_names_is_a_method_a_setting_or_a_value_of_what_its_section_lists() -> None:
    for title, body in sections(REFERENCE.read_text()):
        modules = modules_of(body)
        listed: list[Any] = [resolved(name, modules) for name in first_cells(body)]
        known = {name for one in listed for name in parameters_of(one)} | VALUES
        places = [*modules, *listed]
        unknown = [name for name in NAME.findall(body) if name not in known and resolved(name, places) is None]
        assert unknown == [], title


VALUES = {
    *("m.call", "m.call_sync", "call", "fn", "random", "CancelledError", "None"),
    *("none", "full", "equal", "proportional", "decorrelated", "not_sent", "retry_after"),
    *typing.get_args(GiveUpReason),
    *typing.get_args(RungOutcome),
    *("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "CIRCUIT_BREAKER_RECOVERY_TIMEOUT_SECS"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_type_that_a_page_names_exists(page: Path) -> None:
    modules = modules_of(page.read_text(), REFERENCE.read_text())
    for title, body in sections(page.read_text()):
        for name in NAME.findall(body):
            if name[0].isupper() and name not in {*VALUES, "Date"}:
                assert resolved(name, modules) is not None, f"{page.name}, {title}: {name!r} does not exist"


def test_every_exported_name_is_in_the_reference() -> None:
    text = REFERENCE.read_text()
    names = {part for name in NAME.findall(text) for part in name.split(".")}
    assert sorted({*resilience.__all__} - names) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_test_files_are_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        inside = (page.parent / target).resolve()
        if inside.is_relative_to(LIBRARY) or PROBES.exists():  # the library may stand alone
            assert inside.exists(), target
    for name in re.findall(r"`(test_[a-z_]+\.py)`", text):
        assert (LIBRARY / "tests" / name).exists(), name


@pytest.mark.skipif(not PROBES.exists(), reason="the library stands alone")
def test_what_is_said_of_others_was_measured() -> None:
    (measured,) = re.findall(r"^\| who fails .*$", PROBES.read_text(), re.MULTILINE)
    said = re.findall(r"\d+ of \d+ peers", re.sub(r"\s+", " ", WHY.read_text()))
    assert len(said) > 10
    assert [count for count in said if f" {count} " not in measured] == []
