"""The core is usable anywhere: importing all of it imports the standard library only, and each name has one home."""

import ast
import subprocess
import sys
from pathlib import Path

import resilience

SCRIPT = """
import sys
before = set(sys.modules)
import resilience
for name in resilience.__all__:
    getattr(resilience, name)
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(tops - set(sys.stdlib_module_names) - {"resilience"}))
print(sorted(name for name in sys.modules if name.startswith("resilience.integrations")))
"""


def test_the_core_imports_the_standard_library_only() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_what_the_type_checker_sees_is_what_can_be_imported() -> None:
    tree = ast.parse(Path(resilience.__file__).read_text())
    seen = {
        alias.name: (node.module or "").removeprefix("resilience.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resilience.")
        for alias in node.names
    }
    assert seen == resilience._HOME_OF
    assert resilience.__all__ == sorted(seen)
    for name in resilience.__all__:
        assert getattr(resilience, name).__class__, name
    assert not {*resilience.__all__} & {*resilience._HOMES}, "a name that is a module's too would be shadowed by it"


def test_an_unknown_name_is_an_attribute_error_and_dir_knows_all() -> None:
    assert not hasattr(resilience, "no_such_name")
    assert {*resilience.__all__} <= {*dir(resilience)}
