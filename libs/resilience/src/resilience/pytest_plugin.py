"""The pytest plugin: testing mode for whole suites, a fake clock as a fixture, and seeds that can be replayed.

Registered under the name `resilience`; does nothing until asked. In pytest's configuration `resilience_testing = true`
puts every test into testing mode, and `resilience_strict = true` fails tests that leave something behind. One test
gets into testing mode by the fixture `resilience_testing`, or by the marker `resilience(attempts=..., backoff=...,
seed=...)`, which also says how it is for a test that is in it anyway.

Every test begins with the same seed, 0 or what `--resilience-seed` says, so that one repeated alone sees the same
jitter as it did among others. The seed is shown with a test that failed.

Every run of pytest imports this module, so it imports the rest of the library only when that is used.
PYTEST_DONT_REWRITE: there is no assert statement in here, and importing it early is no mistake.
"""

from __future__ import annotations

import random
import shlex
import sys
from argparse import ArgumentTypeError
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from resilience.breaker import CircuitBreaker
    from resilience.testing import FakeClock, RecordedEvents
    from resilience.testing.mode import TestingMode

_MODE = pytest.StashKey["TestingMode"]()
_BAD_MARKER = pytest.StashKey[str]()
_EVENTS = pytest.StashKey["RecordedEvents"]()
_CLOCK = pytest.StashKey["FakeClock"]()
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("resilience").addoption(
        "--resilience-seed",
        type=_seed,
        default=0,
        metavar="N",
        help="seed of all jitter in the testing mode of resilience; 'random' chooses one (default: 0)",
    )
    parser.addini("resilience_testing", "run every test in the testing mode of resilience", type="bool", default=False)
    parser.addini(
        "resilience_strict",
        "fail tests that leave a timer on fake_clock, or a circuit of the process-wide registry held open",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "resilience(attempts=None, backoff=False, seed=0): run in the testing mode of resilience, with at most so many "
        "attempts per retry, and with or without the waits between them",
    )
    for_worker = getattr(config, "workerinput", {})
    config.option.resilience_seed = for_worker.get("resilience_seed", config.getoption("resilience_seed"))
    if config.getini("resilience_strict"):
        config.pluginmanager.register(_Strict(), "resilience-strict")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist: a seed chosen at random is the same for every worker."""
    node.workerinput["resilience_seed"] = node.config.getoption("resilience_seed")


def pytest_report_header(config: pytest.Config) -> str | None:
    on = config.getini("resilience_testing")
    return f"resilience: testing mode, seed {config.getoption('resilience_seed')}" if on else None


@pytest.fixture
def fake_clock(request: pytest.FixtureRequest) -> Iterator[FakeClock]:
    """A clock that stands still until the test moves it. With `resilience_strict` nothing may wait on it at the end."""
    from resilience.testing import FakeClock, assert_nothing_pending

    clock = request.node.stash[_CLOCK] = FakeClock()
    yield clock
    if request.config.getini("resilience_strict") and not _has_failed(request.node):
        assert_nothing_pending(clock)


@pytest.fixture
def resilience_testing(request: pytest.FixtureRequest) -> Iterator[TestingMode]:
    """Testing mode is on; the value tells its `seed`, `attempts` and `backoff`."""
    mode = request.node.stash.setdefault(_MODE, _mode(request.node))
    with mode:
        yield mode


@pytest.fixture
def resilience_events(request: pytest.FixtureRequest) -> RecordedEvents:
    """An `Events` to give to mechanisms. What they told is in its `recorded`, and is shown when the test fails."""
    from resilience.testing import RecordedEvents

    events = request.node.stash[_EVENTS] = RecordedEvents()
    return events


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Testing mode holds from before the test's first fixture until after its last one."""
    if item.get_closest_marker("resilience") is None and not item.config.getini("resilience_testing"):
        return (yield)
    try:
        mode = item.stash[_MODE] = _mode(item)
    except (TypeError, ValueError) as error:
        item.stash[_BAD_MARKER] = str(error)
        return (yield)
    with mode:
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_FAILED] = False
    if _BAD_MARKER in item.stash:
        pytest.fail(f"marker resilience: {item.stash[_BAD_MARKER]}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        report.sections += _sections(item)
    return report


def _seed(text: str) -> int:
    if text == "random":
        return random.SystemRandom().randrange(2**32)
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a whole number or 'random', not {text!r}") from None


def _mode(item: pytest.Item) -> TestingMode:
    """How testing mode is for that test. Raises TypeError and ValueError when its marker is wrong."""
    from resilience.testing import testing_mode

    marker = item.get_closest_marker("resilience")
    seed: int = item.config.getoption("resilience_seed")
    if marker is None:
        return testing_mode(seed=seed)
    if marker.args or not marker.kwargs.keys() <= {"attempts", "backoff", "seed"}:
        raise TypeError("takes attempts, backoff and seed, by name")
    return testing_mode(**{"seed": seed, **marker.kwargs})


def _has_failed(node: pytest.Item | pytest.Collector) -> bool:
    return node.stash.get(_FAILED, False)


def _sections(item: pytest.Item) -> list[tuple[str, str]]:
    sections = []
    mode, events = item.stash.get(_MODE, None), item.stash.get(_EVENTS, None)
    if mode is not None:
        again = f"pytest {shlex.quote(item.nodeid)} --resilience-seed {mode.seed}"
        sections.append(("resilience", f"{mode!r}\nthe same again: {again}"))
    if events is not None:
        sections.append(("resilience events", events.recorded.describe()))
    return sections


class _Strict:
    """What is done for `resilience_strict`. A failed test is not blamed twice: it may not have got to cleaning up.

    Plugins for asyncio close a test's event loop before they tear down what was set up before the loop, which often
    includes `fake_clock`; what sleeps is cancelled with the loop and would not be found any more. So sleepers are
    looked for just before a loop is closed: by then every fixture that can stop them has.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        import asyncio

        value = yield
        if isinstance(value, asyncio.Runner | asyncio.AbstractEventLoop):
            fixturedef.addfinalizer(partial(_assert_no_sleepers, request.node))
        return value

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        yield
        if not _has_failed(item):
            _assert_none_held()


def _assert_no_sleepers(node: pytest.Item | pytest.Collector) -> None:
    from resilience.testing.waiting import assert_no_sleepers

    clock = node.stash.get(_CLOCK, None)
    if clock is not None and not _has_failed(node):
        assert_no_sleepers(clock)


def _assert_none_held() -> None:
    """The next test finds them closed again, whatever this one has left."""
    held = [breaker for breaker in _process_wide() if breaker.held and breaker.state == "open"]
    for breaker in held:
        breaker.reset()
    if held:
        names = ", ".join(repr(breaker.name) for breaker in held)
        pytest.fail(f"circuits of the process-wide registry left held open: {names}", pytrace=False)


def _process_wide() -> list[CircuitBreaker]:
    """The breakers of `get_graceful_degradation()`, if the program has ever asked for it."""
    shared = getattr(sys.modules.get("resilience.graceful"), "_shared", None)
    return [] if shared is None else [shared.breaker(name) for name in shared.get_all_circuit_statuses()]
