"""The documentation is held against the code: its examples run and print what they say, and what it names exists."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import resilience

LIBRARY = Path(__file__).parents[1]
README, WHY, REFERENCE, RECIPES = (
    LIBRARY / "README.md",
    *(LIBRARY / "docs" / name for name in ("why.md", "reference.md", "recipes.md")),
)
PAGES = (README, WHY, REFERENCE, RECIPES)
PROBES = LIBRARY.parents[1] / "benchmarks" / "resilience" / "README.md"

RUN = """
import re, sys
for number, block in enumerate(re.findall(r"^```python\\n(.*?)^```", open(sys.argv[1]).read(), re.DOTALL | re.MULTILINE)):
    print(f"-- block {number}", flush=True)
    exec(compile(block, f"{sys.argv[1]} block {number}", "exec"), {"__name__": "__main__"})
"""
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ARROW = re.compile(r"  # → (.*)$", re.MULTILINE)
NAME = re.compile(r"`(resilience(?:\.[a-z_0-9]+)*|[A-Za-z_][A-Za-z_0-9]*(?:\.[A-Za-z_][A-Za-z_0-9]*)*)(?:\([^`]*\))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run_and_print_what_they_say(page: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    if not blocks:
        return
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(page)], capture_output=True, text=True, timeout=30, check=False
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
    return [module(name) for name in sorted(names)]


@cache
def module(name: str) -> Any:
    """The module; of one that needs a client of a store, only what it defines: the client may not be there."""
    if not name.startswith("resilience.integrations."):
        return importlib.import_module(name)
    tree = ast.parse((LIBRARY / "src" / f"{name.replace('.', '/')}.py").read_text())
    return SimpleNamespace(**{node.name: node for node in tree.body if isinstance(node, ast.ClassDef)})


def resolved(name: str, places: Iterable[Any]) -> object | None:
    """What `name` is: something of the package, of a module, or of a class (or a parameter of its constructor)."""
    if name.startswith("resilience"):
        found: object = module(name)
        return found
    first, *rest = name.split(".")
    for place in (resilience, *places):
        found = getattr(place, first, None)
        for attribute in rest:
            found = getattr(found, attribute, None)
        if found is not None:
            return found
    return None


def parameters_of(cls: object) -> set[str]:
    return set(inspect.signature(cls).parameters) if callable(cls) else set()


def known(name: str, modules: list[Any], classes: list[object]) -> bool:
    if resolved(name, modules) is not None:
        return True
    first = name.split(".")[0]
    return any(hasattr(one, first) or first in parameters_of(one) for one in classes)


def first_cells(body: str) -> Iterator[str]:
    for line in body.splitlines():
        if line.startswith("| `"):
            yield line.split("|")[1]


def test_what_the_reference_lists_exists() -> None:
    listed = 0
    for title, body in sections(REFERENCE.read_text()):
        modules = modules_of(body)
        names = [name for name in NAME.findall(body) if name[0].isupper()]
        classes = [found for name in names if inspect.isclass(found := resolved(name, modules))]
        classes += [found for name in names if inspect.isfunction(found := resolved(name, modules))]
        for cell in first_cells(body):
            for name in NAME.findall(cell):
                listed += 1
                functions = [resolved(other, modules) for other in NAME.findall(body)]
                assert known(name, modules, [*classes, *functions]), f"{title}: {name!r} does not exist"
    assert listed > 150


WORDS = {"PATH", "CancelledError", "BaseException", "Exception", "TimeoutError", "True", "False", "None", "Date"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_type_that_a_page_names_exists(page: Path) -> None:
    modules = modules_of(page.read_text(), REFERENCE.read_text())
    for title, body in sections(page.read_text()):
        for name in NAME.findall(body):
            if name[0].isupper() and name not in WORDS and not name.startswith(("CIRCUIT_BREAKER_", "HTTP")):
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
