"""The core is usable anywhere: importing it imports nothing but the standard library."""

import subprocess
import sys

SCRIPT = """
import sys
before = set(sys.modules)
import resilience
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(tops - set(sys.stdlib_module_names) - {"resilience"}))
print(sorted(name for name in sys.modules if name.startswith("resilience.integrations")))
"""


def test_the_core_imports_the_standard_library_only() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
