"""Mutation testing of the library's core (make mutate): how many small faults, planted one by one, the tests notice.

It works on a copy in a temporary directory, in an environment of its own with a pinned mutmut, and leaves both for the
next run, which then does only what is left. Functions with decorators, properties among them, and module constants
are beyond mutmut. Slow tests are left out: what they alone would notice counts as unnoticed here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "libs/resilience"
REQUIREMENTS = (
    "mutmut==3.8.1",
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "pytest-timeout==2.4.0",
    "hypothesis==6.170.17",
)

# What is scored together: modules, and the tests that have to notice.
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "breaker": (
        ("breaker", "circuit", "window"),
        ("breaker", "breaker_known_failures", "breaker_model", "breaker_threads", "window", "mutants"),
    ),
    "retry": (("retry", "backoff"), ("retry", "backoff", "mutants")),
    "deadline": (("deadline", "timeout"), ("deadline", "timeout", "mutants")),
}
# Not about behaviour, but about the very byte code, memory or wall time, which mutmut's own wrapping changes.
LEFT_OUT = " or ".join(
    (
        "steps_without_the_lock",
        "stay_flat",
        "traceback",
        "in_real_time",
        "collector_at_any_moment",
        "every_call_is_accounted_for",
        "reference_cycle",
    )
)

NOTICED = {1: "killed", 3: "killed", 36: "timeout", -24: "timeout", 24: "timeout", 152: "timeout", 255: "timeout"}
UNNOTICED = {0: "survived", 5: "no test", 33: "no test"}
"""Exit codes of pytest, as mutmut keeps them."""

PROJECT = """[project]
name = "mutated"
version = "0"

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
addopts = ["--import-mode=importlib"]
filterwarnings = ["error"]

[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
also_copy = ["tests", "conftest.py"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-k", "not ({left_out})"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 4.0
timeout_constant = 1.0
"""

# The same examples every time, fewer of them, and no search for a smaller one: failing is enough.
CONFTEST = """import pytest
from hypothesis import Phase, settings


@pytest.fixture(autouse=True)
def _settings_made_anew():
    from resilience.breaker import _shared

    _shared.cache_clear()  # else those made before a fault was planted would be used


settings.register_profile(
    "mutate", derandomize=True, database=None, deadline=None, max_examples=25, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("mutate")
"""


def main() -> int:
    """Runs; 1 when a group has not reached `--goal`."""
    wanted, options = _arguments()
    ends = time.monotonic() + options.budget
    base = Path(options.work)
    python = _environment(base)
    reached = True
    for group in wanted:
        place = _copy(base / group, group)
        complete = _run(python, place, ends - time.monotonic(), options.parallel)
        reached = _report(place, group, options.goal, survivors=options.survivors) and complete and reached
    return 0 if reached else 1


def _arguments() -> tuple[list[str], argparse.Namespace]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = {module: group for group, (modules, _) in GROUPS.items() for module in modules} | {g: g for g in GROUPS}
    parser.add_argument("module", nargs="*", help=f"of {', '.join(sorted(known))}; all if not given")
    parser.add_argument("--budget", type=float, default=3600.0, metavar="SECONDS", help="stop after so long (3600)")
    parser.add_argument("--parallel", type=int, default=2, help="mutants at once (2)")
    parser.add_argument("--goal", type=float, default=0.9, help="share to be noticed (0.9)")
    parser.add_argument("--survivors", action="store_true", help="show each as a diff, not only by name")
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "resilience-mutants"), help="where to work")
    options = parser.parse_args()
    unknown = [module for module in options.module if module not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    return list(dict.fromkeys(known[module] for module in options.module)) or list(GROUPS), options


def _environment(base: Path) -> Path:
    """The interpreter of an environment that has what is needed."""
    python, stamp = base / "venv/bin/python", base / "venv/requirements"
    if not stamp.is_file() or stamp.read_text() != "\n".join(REQUIREMENTS):
        print(f"making an environment in {base / 'venv'}", flush=True)
        uv = str(ROOT / ".uv/bin/uv") if (ROOT / ".uv/bin/uv").exists() else "uv"
        shutil.rmtree(base / "venv", ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(base / "venv")], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *REQUIREMENTS], check=True)
        stamp.write_text("\n".join(REQUIREMENTS))
    return python


def _copy(place: Path, group: str) -> Path:
    """The library and the group's tests in `place`. Verdicts on mutants of a module that has changed are dropped."""
    modules, tests = GROUPS[group]
    place.mkdir(parents=True, exist_ok=True)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.rmtree(place / name, ignore_errors=True)
    # As new, so that mutmut notices; its own files on a module stay when the module is the same.
    shutil.copytree(LIBRARY / "src", place / "src", ignore=ignore)
    (place / "tests").mkdir()
    files = [f"tests/test_resilience_{test}.py" for test in tests]
    files = [file for file in files if (LIBRARY / file).is_file()]
    for file in files:
        shutil.copy2(LIBRARY / file, place / file)
    paths = [f"src/resilience/{module}.py" for module in modules]
    text = PROJECT.format(modules=json.dumps(paths), tests=json.dumps(files), left_out=LEFT_OUT)
    (place / "pyproject.toml").write_text(text)
    (place / "conftest.py").write_text(CONFTEST)
    _forget_unnoticed(place)
    return place


def _verdicts(place: Path) -> dict[str, dict[str, int | None]]:
    """Exit codes of pytest by mutant, by module."""
    found = sorted((place / "mutants/src/resilience").glob("*.meta"))
    return {file.name.partition(".")[0]: json.loads(file.read_text())["exit_code_by_key"] for file in found}


def _forget_unnoticed(place: Path) -> None:
    """New tests may notice now what they did not: these are tried again. So is which test covers what."""
    (place / "mutants/mutmut-stats.json").unlink(missing_ok=True)
    for file in (place / "mutants/src/resilience").glob("*.meta"):
        data = json.loads(file.read_text())
        codes = data["exit_code_by_key"]
        data["exit_code_by_key"] = {key: code if code in NOTICED else None for key, code in codes.items()}
        file.write_text(json.dumps(data))


def _run(python: Path, place: Path, seconds: float, parallel: int) -> bool:
    """mutmut on the copy, with its progress; whether it came to the end in time."""
    if seconds <= 0:
        return False
    command = ["nice", "-n", "10", str(python), "-m", "mutmut", "run", "--max-children", str(parallel)]
    log = place / "mutmut.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=place,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        ends = time.monotonic() + seconds
        try:
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(1)
                _progress(place)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(flush=True)
    if process.returncode > 0:
        print(f"mutmut ended with {process.returncode}; the end of {log}:")
        print("\n".join(log.read_text(errors="replace").replace("\r", "\n").splitlines()[-30:]))
    return process.returncode == 0


def _progress(place: Path) -> None:
    try:
        codes = [code for module in _verdicts(place).values() for code in module.values()]
    except (ValueError, OSError):  # being written
        return
    done, bad = sum(code is not None for code in codes), sum(code in UNNOTICED for code in codes)
    print(f"\r{place.name}: {done} of {len(codes)} mutants tried, {bad} not noticed ", end="", flush=True)


def _report(place: Path, group: str, goal: float, *, survivors: bool) -> bool:
    """Prints the scores; whether the group has reached the goal."""
    noticed = tried = 0
    for module, codes in _verdicts(place).items():
        if module not in GROUPS[group][0]:
            continue
        good = sum(code in NOTICED for code in codes.values())
        bad = {
            key: UNNOTICED.get(code, f"exit {code}")
            for key, code in codes.items()
            if code is not None and code not in NOTICED
        }
        left = len(codes) - good - len(bad)
        noticed, tried = noticed + good, tried + good + len(bad)
        print(f"  {module:10} {_percent(good, good + len(bad))}  {good} of {good + len(bad)}", end="")
        print(f", {left} not tried" if left else "")
        for key, what in bad.items():
            print(f"    {what}: {_readable(key)}" if not survivors else f"    {what}: {key}\n{_diff(place, key)}")
    print(f"{group}: {_percent(noticed, tried)} of {tried} mutants noticed (goal {goal:.0%})", flush=True)
    return tried > 0 and noticed >= goal * tried


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:6.1%}" if whole else "     -"


def _readable(key: str) -> str:
    return key.replace("x\u01c1", "").replace("\u01c1", ".").replace(".x_", ".").replace("__mutmut_", " #")


def _diff(place: Path, key: str) -> str:
    python = place.parent / "venv/bin/python"
    shown = subprocess.run([str(python), "-m", "mutmut", "show", key], cwd=place, capture_output=True, text=True)
    return "\n".join(line for line in shown.stdout.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))


if __name__ == "__main__":
    sys.exit(main())
