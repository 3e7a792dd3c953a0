"""From what was found to tables: ratios to the best peer first, then everybody's numbers, then the probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.measure import Figure, Target, table
from benchmarks.resilience.rows import OTHER_ROWS, REFERENCE, ROWS

Cells = list[dict[str, Any]]
Found = dict[str, Any]

BREAKER_COLUMNS = ("closed", "window", "open", "threads", "memory", "import")
OTHER_COLUMNS = (*(name for name in ROWS if name not in BREAKER_COLUMNS), "import")
MEMORY_LIMIT = 450.0  # bytes
IMPORT_LIMIT = 15.0  # ms


def as_text(found: Found) -> str:
    """Everything, as Markdown that is also readable on a terminal."""
    figures = [figure for name in ROWS if name in found["rows"] for figure in _figures(found, name)]
    threads = _figures(found, "threads") if "threads" in found["rows"] else []
    parts = [
        table([*figures, *threads]) if figures or threads else "",
        *_missing(found),
        _limits(found, "memory", MEMORY_LIMIT, "bytes per idle breaker"),
        _limits(found, "import", IMPORT_LIMIT, "ms to import after asyncio"),
        _by_form(found),
        "µs per call above the bare call, medians; in brackets what is no library:",
        _matrix(found, BREAKER_COLUMNS),
        _matrix(found, OTHER_COLUMNS),
        "\n".join(f"{name}: {note}" for name, note in found["notes"].items()),
        ", ".join(f"{key} {value}" for key, value in found["about"].items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _best(cells: Cells, library: str) -> dict[str, Any] | None:
    """The fastest form of a library."""
    own = [cell for cell in cells if cell["library"] == library and not cell.get("reference")]
    return min(own, key=_median, default=None)


def _median(cell: dict[str, Any]) -> float:
    samples: list[float] = cell["samples"]
    return median(samples)


def _figures(found: Found, name: str) -> list[Figure]:
    cells: Cells = found["rows"][name]
    ours = _best(cells, found["ours"])
    if ours is None:
        return []
    peers = [
        cell for cell in cells if cell["library"] != found["ours"] and name not in found["floors"][cell["library"]]
    ]
    best = min((cell for cell in peers if not cell.get("reference")), key=_median)
    row = ROWS.get(name)
    title, target = (row.title, row.target) if row else (OTHER_ROWS[name], 1.0)
    figures = [_figure(title, ours, best, target)]
    for of, composed in (("a peer's", False), ("two peers'", True)):
        references = [cell for cell in peers if cell.get("reference") and _composed(found, cell) is composed]
        if references:
            best = min(references, key=_median)
            figures.append(_figure(f"{title} / {of} {ROWS[REFERENCE].title}", ours, best, 1.0))
    return figures


def _composed(found: Found, cell: dict[str, Any]) -> bool:
    return cell["library"] in found["composed"]


def _figure(title: str, ours: dict[str, Any], best: dict[str, Any], target: float) -> Figure:
    pairs = zip(ours["samples"], best["samples"], strict=True)
    ratios = [mine / other for mine, other in pairs if other > 0]
    form = f" ({best['form']})" if best["form"] not in ("", "decorator") else ""
    what = f"{title}: {_median(ours):.2f} µs / {best['library']}{form} {_median(best):.2f}"
    return Figure(what, ratios, "×", Target("at most", target))


def _missing(found: Found) -> list[str]:
    names = [name for name, cells in found["rows"].items() if _best(cells, found["ours"]) is None]
    return [f"Not there yet on our side: {', '.join(names)}"] if names else []


def _limits(found: Found, name: str, limit: float, what: str) -> str:
    cells: Cells = found["rows"].get(name, [])
    ours = _best(cells, found["ours"])
    if ours is None:
        return ""
    most = max((cell for cell in cells if cell["library"].startswith(found["ours"])), key=_median)
    peers = sorted((cell for cell in cells if not cell["library"].startswith(found["ours"])), key=_median)
    field = ", ".join(f"{cell['library']} {_median(cell):.0f}" for cell in peers)
    met = "yes" if _median(most) <= limit else "NO"
    whole = f", everything {_median(most):.1f}" if most is not ours else ""
    return f"{what}: ours {_median(ours):.1f}{whole} (≤ {limit:g}? {met}); {field}"


def _by_form(found: Found) -> str:
    """What each of our forms costs."""
    lines = []
    for name in ROWS:
        cells = found["rows"].get(name, [])
        own = [cell for cell in cells if cell["library"] == found["ours"] and not cell["reference"]]
        forms = ", ".join(f"{cell['form']} {_median(cell):.2f}" for cell in sorted(own, key=_median))
        lines += [f"{name}: {forms}"] if len(own) > 1 else []
    return "\n".join(["Ours by form, µs:", *lines]) if lines else ""


def _matrix(found: Found, columns: Sequence[str]) -> str:
    """One library a line, one row of the benchmark a column; the fastest first."""
    columns = [name for name in columns if name in found["rows"]]
    lines: dict[str, dict[str, float]] = {}
    for name in columns:
        for library in {cell["library"] for cell in found["rows"][name]}:
            best = _best(found["rows"][name], library)
            if best:
                lines.setdefault(library, {})[name] = _median(best)
    own_columns = [name for name in columns if name != "import"]
    kept = {library: cells for library, cells in lines.items() if any(name in cells for name in own_columns)}
    if not kept:
        return ""
    order = sorted(kept, key=lambda library: [kept[library].get(name, 1e9) for name in own_columns])
    rows = [
        [library, *(_number(found, library, name, kept[library].get(name)) for name in columns)] for library in order
    ]
    return grid([["", *columns], *rows])


def _number(found: Found, library: str, name: str, value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.0f}" if name == "memory" else f"{value:.1f}" if name == "import" or value >= 10 else f"{value:.2f}"
    return f"({text})" if name in found["floors"][library] else text


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def probes_as_text(found: Found) -> str:
    """The probes: one library a line; ✗ where it goes wrong, - where it has nothing that could."""
    verdicts = {(library, probe): (passed, text) for library, probe, passed, text in found["verdicts"]}
    libraries = list(dict.fromkeys(library for library, _ in verdicts))
    probes = list(found["probe_texts"])
    count = {
        name: sum(passed is False for (library, _), (passed, _) in verdicts.items() if library == name)
        for name in libraries
    }
    order = sorted(libraries, key=lambda name: (name != found["ours"], (name, probes[0]) not in verdicts, count[name]))
    rows = [[name, str(count[name]), *(_mark(verdicts.get((name, probe))) for probe in probes)] for name in order]
    failing = ["who fails", "", *(_failing(verdicts, probe, found["ours"]) for probe in probes)]
    explained = [f"{probe}: {text}" for probe, text in found["probe_texts"].items()]
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    return "\n".join([grid([["", "✗", *probes], *rows, failing]), "", *explained, "", about])


def _mark(verdict: tuple[bool | None, str] | None) -> str:
    if verdict is None or verdict[0] is None:
        return "-"
    return verdict[1] if verdict[0] else f"✗ {verdict[1]}"


def _failing(verdicts: dict[tuple[str, str], tuple[bool | None, str]], probe: str, ours: str) -> str:
    outcomes: Iterable[bool | None] = [
        passed for (library, name), (passed, _) in verdicts.items() if name == probe and library != ours
    ]
    judged = [passed for passed in outcomes if passed is not None]
    return f"{judged.count(False)} of {len(judged)} peers"
