"""Files that are made from code and committed: written, or with ``--check`` compared."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def settle(documents: Mapping[Path, str], arguments: Sequence[str] | None = None) -> int:
    """Writes the documents, or with ``--check`` compares them with what is there; 1 when something is out of date."""
    given = sys.argv[1:] if arguments is None else arguments
    stale = [path for path, text in documents.items() if not path.is_file() or path.read_text() != text]
    if "--check" in given:
        for path in stale:
            print(f"out of date, run `make docs`: {path.relative_to(ROOT)}")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(documents[path])
    return 0
