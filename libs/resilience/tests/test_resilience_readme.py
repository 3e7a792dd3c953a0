"""The README's example runs as printed, and does what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1:6] == ["41 degraded closed"] * 2 + ["41 degraded open"] * 3
    assert lines[6].startswith("circuit 'shop.stock' is open, next trial in")
    assert lines[7].startswith("Served(value=42, degradations=()")
