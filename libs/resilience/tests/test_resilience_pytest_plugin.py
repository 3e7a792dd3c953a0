"""The pytest plugin does what it is asked for, and nothing when it is not asked.

Each test runs a small suite of its own, with no other plugin than those named.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio.plugin

import resilience.pytest_plugin
from resilience import graceful
from resilience.ambient import RANDOM, TESTING
from resilience.breaker import CircuitBreaker
from resilience.pytest_plugin import _process_wide

pytest_plugins = ["pytester"]

HOW_TO = Path(__file__).parents[3] / "docs/how-to/test-your-fallbacks.md"
Run = Callable[..., pytest.RunResult]

SHOW = """
    from random import Random
    from resilience.ambient import RANDOM, TESTING

    def shown():
        chance = Random()
        chance.setstate(RANDOM.getstate())
        return TESTING.backoff, TESTING.attempts, round(chance.random(), 6)
"""
ZERO = 0.844422
"""The first number of a `Random(0)`."""
ON = "resilience_testing = true"
STRICT = "resilience_strict = true"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a suite, given as code, ini lines and arguments. Nothing of it may reach this process."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(show=SHOW)
    pytester.syspathinsert()

    def run_suite(code: str, *args: str, ini: str = "", plugins: tuple[object, ...] = ()) -> pytest.RunResult:
        pytester.makepyfile(test_suite=code)
        pytester.makeini(f"[pytest]\n{ini}\nfilterwarnings = error\n")
        before = TESTING.attempts, TESTING.backoff, RANDOM.getstate()
        loaded = (resilience.pytest_plugin, *plugins)
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers", *args, plugins=loaded)
        assert (TESTING.attempts, TESTING.backoff, RANDOM.getstate()) == before
        return result

    return run_suite


def test_it_does_nothing_until_asked(run: Run) -> None:
    result = run(
        """
        from show import shown

        def test_as_in_production(request):
            assert shown()[:2] == (True, None)
            assert not [name for name in request.fixturenames if "resilience" in name or "fake" in name]

        def test_that_fails():
            assert False
        """,
        "--resilience-seed=5",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*resilience:*")
    result.stdout.no_fnmatch_line("*the same again*")


def test_a_whole_suite_is_in_testing_mode_when_the_configuration_says_so(run: Run) -> None:
    result = run(
        f"""
        import pytest
        from show import shown

        @pytest.fixture
        def before():
            return shown()

        def test_the_first(before):
            assert before == (False, None, {ZERO})  # on before the first fixture

        def test_begins_with_the_same_chance():
            assert shown() == (False, None, {ZERO})
        """,
        ini=ON,
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["resilience: testing mode, seed 0"])


def test_a_failing_test_tells_the_seed_and_how_to_repeat_it(run: Run) -> None:
    code = """
        import pytest
        from show import shown

        @pytest.mark.parametrize("name", ["a b"])
        def test_unlucky(name):
            assert shown()[2] == 0.623  # Random(5) begins with it
            assert False, "got there"
        """
    result = run(code.replace("0.623 ", "0.622902 "), "--resilience-seed=5", ini=ON)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*got there*",
            "*- resilience -*",
            "testing_mode(seed=5, attempts=None, backoff=False)",
            "the same again: pytest 'test_suite.py::test_unlucky[[]a b]' --resilience-seed 5",
        ]
    )


def test_a_seed_can_be_chosen_at_random_and_is_shown(run: Run) -> None:
    code = """
        def test_seeds_differ(resilience_testing):
            assert resilience_testing.seed != 0
            print("seed", resilience_testing.seed)
            assert False
        """
    result = run(code, "--resilience-seed=random")
    seed = next(line.split()[1] for line in result.outlines if line.startswith("seed "))
    result.stdout.fnmatch_lines([f"the same again: pytest test_suite.py::test_seeds_differ --resilience-seed {seed}"])
    result = run("def test_a(): pass", "--resilience-seed=lucky")
    result.stderr.fnmatch_lines(["*--resilience-seed: must be a whole number or 'random', not 'lucky'*"])


def test_the_workers_of_xdist_share_a_seed_chosen_at_random(run: Run, pytester: pytest.Pytester) -> None:
    node = SimpleNamespace(workerinput={}, config=pytester.parseconfig("-p", "resilience.pytest_plugin"))
    node.config.option.resilience_seed = 8
    resilience.pytest_plugin.pytest_configure_node(node)
    assert node.workerinput == {"resilience_seed": 8}
    worker = type("Worker", (), {"pytest_configure": hookimpl_first(node.workerinput)})()
    code = """
        def test_in_a_worker(resilience_testing):
            assert resilience_testing.seed == 8
        """
    run(code, "--resilience-seed=random", plugins=(worker,)).assert_outcomes(passed=1)


def hookimpl_first(workerinput: dict[str, object]) -> Callable[..., None]:
    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self: object, config: Any) -> None:
        config.workerinput = workerinput

    return pytest_configure


def test_a_marker_puts_one_test_into_testing_mode_and_says_how(run: Run) -> None:
    result = run(
        f"""
        import pytest
        from show import shown

        @pytest.mark.resilience
        def test_plain():
            assert shown() == (False, None, {ZERO})

        @pytest.mark.resilience(attempts=2, backoff=True, seed=5)
        def test_with_settings(resilience_testing):
            assert shown() == (True, 2, 0.622902)
            assert (resilience_testing.attempts, resilience_testing.seed) == (2, 5)

        @pytest.mark.resilience(attempts=1)
        class TestNearestWins:
            def test_of_the_class(self):
                assert shown()[:2] == (False, 1)

            @pytest.mark.resilience(attempts=3)
            def test_of_its_own(self):
                assert shown()[:2] == (False, 3)

        def test_unmarked():
            assert shown()[:2] == (True, None)
        """
    )
    result.assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("attempts=0", "attempts must be a whole number of at least 1 or None, not 0"),
        ("3", "takes attempts, backoff and seed, by name"),
        ("retries=3", "takes attempts, backoff and seed, by name"),
        ("seed='x'", "seed must be a whole number, not 'x'"),
    ],
)
def test_a_wrong_marker_fails_its_test_and_no_other(run: Run, marker: str, text: str) -> None:
    result = run(
        f"""
        import pytest

        @pytest.mark.resilience({marker})
        def test_marked():
            pass

        def test_other():
            pass
        """
    )
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines([f"marker resilience: {text}"])


def test_the_fixture_puts_a_test_into_testing_mode(run: Run) -> None:
    result = run(
        f"""
        from show import shown

        def test_with(resilience_testing):
            assert shown() == (False, None, {ZERO})
            assert (resilience_testing.seed, resilience_testing.backoff) == (0, False)

        def test_without():
            assert shown()[:2] == (True, None)
        """
    )
    result.assert_outcomes(passed=2)


def test_testing_mode_ends_with_a_test_that_fails_anywhere(run: Run) -> None:
    result = run(
        """
        import pytest
        from show import shown

        @pytest.fixture
        def bad_setup():
            raise OSError("setup")

        @pytest.fixture
        def bad_teardown():
            yield
            raise OSError("teardown")

        @pytest.mark.resilience
        def test_in_setup(bad_setup): pass

        @pytest.mark.resilience
        def test_in_teardown(bad_teardown): pass

        def test_in_teardown_by_fixture(resilience_testing, bad_teardown): pass

        @pytest.mark.resilience
        def test_skipped(): pytest.skip("not today")

        def test_after_them():
            assert shown()[:2] == (True, None)
        """
    )
    result.assert_outcomes(errors=3, passed=3, skipped=1)


def test_events_of_a_failing_test_are_shown(run: Run) -> None:
    result = run(
        """
        from resilience.retry import Retried, Retry

        def test_gives_up(resilience_testing, resilience_events):
            retry = Retry("stock", attempts=2, retry_on=OSError, events=resilience_events)
            try:
                retry.call_sync(open, "/no such file")
            except OSError:
                pass
            assert resilience_events.recorded.one(Retried).attempt == 2
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- resilience events -*", "  Retried(name='stock', attempt=1, wait=0.0, *"])


def test_a_fake_clock_for_every_test(run: Run) -> None:
    code = """
        import asyncio
        from resilience.testing import FakeClock

        def test_of_sync_code(fake_clock):
            assert isinstance(fake_clock, FakeClock) and fake_clock.pending == 0
            fake_clock.call_later(60, print)
            fake_clock.move(60)

        def test_left_behind(fake_clock):
            asyncio.run(leave(fake_clock))

        async def leave(clock):
            clock.call_later(60, print)
        """
    run(code).assert_outcomes(passed=2)
    result = run(code, ini=STRICT)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_left_behind*", "*1 still waiting on the fake clock*"])
    result.stdout.fnmatch_lines(["*in 60 s: timer print*"])


def test_a_strict_suite_does_not_blame_a_failed_test_twice(run: Run) -> None:
    code = """
        def test_fails_first(fake_clock):
            fake_clock.call_later(60, print)
            assert False
        """
    run(code, ini=STRICT).assert_outcomes(failed=1)


def test_a_strict_suite_finds_circuits_left_held_open(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    held, closed = CircuitBreaker("prices"), CircuitBreaker("stock")
    breakers = {breaker.name: breaker for breaker in (held, closed)}
    shared = SimpleNamespace(breaker=breakers.get, get_all_circuit_statuses=lambda: dict.fromkeys(breakers))
    monkeypatch.setitem(sys.modules, "resilience.graceful", SimpleNamespace(_shared=shared, breakers=breakers))
    code = """
        import sys

        def test_holds():
            breakers = sys.modules["resilience.graceful"].breakers
            breakers["prices"].force_open()
            breakers["stock"].force_closed()

        def test_next(): pass
        """
    run(code).assert_outcomes(passed=2)
    held.reset()
    result = run(code, ini=STRICT)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["circuits of the process-wide registry left held open: 'prices'"])
    assert (held.state, held.held) == ("closed", False)


def test_the_process_wide_registry_is_the_one_that_programs_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graceful, "_shared", None)
    assert _process_wide() == []
    monkeypatch.setattr(graceful, "_shared", graceful.GracefulDegradation())
    breaker = graceful.get_graceful_degradation().breaker("prices")
    assert _process_wide() == [breaker]


def test_a_strict_suite_lets_fixtures_clean_up(run: Run) -> None:
    result = run(
        """
        import asyncio
        import pytest

        @pytest.fixture
        async def poller(fake_clock):
            async def poll():
                while True:
                    await fake_clock.sleep(60)
            task = asyncio.create_task(poll())
            yield
            task.cancel()

        @pytest.fixture
        def timer(fake_clock):
            timer = fake_clock.call_later(60, print)
            yield
            timer.cancel()

        async def test_with_both(fake_clock, timer, poller):
            await fake_clock.advance(1)
            assert fake_clock.pending == 2

        async def test_that_fails(fake_clock):
            asyncio.create_task(fake_clock.sleep(60))
            await asyncio.sleep(0)
            assert False

        async def test_without_a_clock():
            pass
        """,
        ini=f"{STRICT}\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function",
        plugins=(pytest_asyncio.plugin,),
    )
    result.assert_outcomes(passed=2, failed=1)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_it_gets_on_with_pytest_asyncio(run: Run, mode: str) -> None:
    result = run(
        f"""
        import asyncio
        import pytest
        from show import shown

        @pytest.mark.asyncio
        @pytest.mark.resilience(attempts=1)
        async def test_in_testing_mode(fake_clock):
            sleeper = asyncio.create_task(fake_clock.sleep(60))
            await fake_clock.advance(60)
            await sleeper
            assert shown() == (False, 1, {ZERO})

        @pytest.mark.asyncio
        async def test_leaves_a_sleeper(fake_clock):
            async def poll():
                await fake_clock.sleep(60)
            asyncio.create_task(poll(), name="poller")
            await asyncio.sleep(0)
        """,
        ini=f"{STRICT}\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function",
        plugins=(pytest_asyncio.plugin,),
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*in 60 s: task 'poller', at *test_suite.py:* in *poll"])


def test_what_a_test_module_imports_is_not_collected(run: Run) -> None:
    result = run(
        """
        from resilience.testing import *
        from resilience.testing.mode import TestingMode

        @testing_mode()
        def test_decorated(fake_clock):
            assert fake_clock.pending == 0
        """
    )
    result.assert_outcomes(passed=1)


def test_it_describes_itself(run: Run) -> None:
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.resilience(attempts=None, *"])
    helped = run("", "--help").stdout
    helped.fnmatch_lines(["*--resilience-seed=N*", "*resilience_testing (bool)*", "*resilience_strict (bool)*"])
    listed = run("", "--fixtures").stdout.str()
    assert all(name in listed for name in ("fake_clock", "resilience_testing", "resilience_events"))


def test_a_run_that_does_not_use_it_imports_no_more_than_the_plugin() -> None:
    script = "import sys, pytest, resilience.pytest_plugin; print(*sorted(n for n in sys.modules if 'resilience' in n))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["resilience", "resilience.pytest_plugin"]


def test_the_how_to_runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, str] = {}
    for block in re.findall(r"```(?:python|toml)\n(.*?)```", HOW_TO.read_text(), re.DOTALL):
        named = re.match(r"# (\S+\.\w+)\n", block)  # a block without a name goes on with the tests
        name = named[1] if named else "test_stock.py"
        files[name] = files.get(name, "") + block
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    assert files.keys() == {"stock.py", "pyproject.toml", "test_stock.py"}
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_inprocess("-W", "error", plugins=(resilience.pytest_plugin, pytest_asyncio.plugin))
    result.assert_outcomes(passed=files["test_stock.py"].count("async def test_"))
    result.stdout.fnmatch_lines(["resilience: testing mode, seed 0"])
