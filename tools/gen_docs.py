"""Writes the documents that are made from code (make docs); `--check` fails when they are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import ai_core.degradation
import dashboard.degradation
import webrtc.degradation
from resilience import Row, markdown

ROOT = Path(__file__).resolve().parent.parent
ROWS: tuple[Row, ...] = (*dashboard.degradation.ROWS, *ai_core.degradation.ROWS, *webrtc.degradation.ROWS)

_HEAD = """# The degradation matrix, as declared in the code

Made by `make docs` from each service's `degradation.py`; do not edit. What each row's circuit does right now:
`auralink status`, or the page that `make up` names. What to do when a row is degraded: `docs/runbooks/`.

"""


def documents() -> dict[Path, str]:
    """Every generated document by its path."""
    return {ROOT / "docs/degradation-matrix.md": _HEAD + markdown(ROWS)}


def main() -> int:
    """Writes, or with ``--check`` compares; 1 when something is out of date."""
    stale = [path for path, text in documents().items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"out of date, run `make docs`: {path.relative_to(ROOT)}")
        return 1 if stale else 0
    for path, text in documents().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
