"""Where PostgreSQL's files go when root starts it, and that none of them stay behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devstack import privileges
from devstack.privileges import OWNER, PREFIX, account_for, home, sweep
from devstack.state import StateDir

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def test_an_ordinary_user_stays_who_he_is() -> None:
    assert account_for(1000) is None


def test_root_becomes_nobody() -> None:
    account = account_for(0)
    assert account is not None
    assert account.uid != 0


@as_root
def test_data_out_of_reach_is_kept_elsewhere_and_found_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    state = StateDir(tmp_path / "state")
    first = home(state)
    assert first.data.is_relative_to(privileges.ELSEWHERE)
    assert home(state) == first
    sweep(tmp_path)
    assert not first.data.parent.exists()
    assert home(state).data != first.data


@as_root
def test_data_within_reach_stays_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_traversable", lambda *_: True)
    state = StateDir(tmp_path / "state")
    assert home(state).data == state.path / "postgres" / "data"


def test_sweeping_removes_only_what_lost_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "ELSEWHERE", tmp_path)
    folders = {name: tmp_path / f"{PREFIX}{name}" for name in ("kept", "orphan", "unfinished")}
    for folder in (*folders.values(), tmp_path / "stranger"):
        folder.mkdir()
    (folders["kept"] / OWNER).write_text(str(tmp_path))
    (folders["orphan"] / OWNER).write_text(str(tmp_path / "gone"))
    sweep()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"{PREFIX}kept", f"{PREFIX}unfinished", "stranger"]
    sweep(below=tmp_path)
    assert not folders["kept"].exists()
