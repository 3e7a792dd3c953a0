"""Where PostgreSQL's files live and as whom it runs (docs/adr/0003-embedded-servers.md).

PostgreSQL refuses to run as root. Started by an ordinary user there is nothing to do. Started by root it runs as
``nobody``, which must be able to reach the programs and the data: a checkout below ``/root`` is out of its reach, and
then programs and data move to a directory of their own below ``/var/tmp``, remembered in the state directory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devstack import wheels
from devstack.errors import AccountError
from devstack.process import Account
from devstack.state import StateDir

UNPRIVILEGED = "nobody"
ELSEWHERE = Path("/var/tmp")  # noqa: S108  (only directories made by mkdtemp, checked before use)
PREFIX = "auralink-"
OWNER = "state-dir"


PACKAGE = wheels.postgres()


@dataclass(frozen=True)
class Home:
    """PostgreSQL's programs, its data directory, and the user that owns the latter (``None``: ourselves)."""

    programs: Path
    data: Path
    account: Account | None


def home(state: StateDir) -> Home:
    """The place for this state directory's PostgreSQL; made when it does not exist.

    Raises:
        AccountError: see there.
        OSError: the directory cannot be made.
    """
    account = account_for(os.geteuid())
    if account is None:
        return Home(PACKAGE / "pginstall" / "bin", _data(state.path, None), None)
    base = state.path if _traversable(state.path, account) else _elsewhere(state)
    programs = PACKAGE / "pginstall" / "bin"
    if not _runs(programs / "postgres", account):
        programs = _copy_programs(_elsewhere(state))
    return Home(programs, _data(base, account), account)


def account_for(uid: int) -> Account | None:
    """The user to run PostgreSQL as when ``uid`` starts it.

    Raises:
        AccountError: root, and there is no user ``nobody``.
    """
    if uid != 0:
        return None
    try:
        entry = pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise AccountError(
            f"PostgreSQL cannot run as root, and there is no user {UNPRIVILEGED!r} to run it as"
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _data(base: Path, account: Account | None) -> Path:
    """The folder that will hold the data directory: PostgreSQL's own, since it creates files beside it too."""
    folder = base / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    return folder / "data"


def _traversable(path: Path, account: Account) -> bool:
    """Whether ``account`` may enter ``path`` and every directory above it, by their mode bits."""
    return all(_may_enter(folder.stat(), account) for folder in (path, *path.parents))


def _may_enter(stat: os.stat_result, account: Account) -> bool:
    return bool(stat.st_mode & 0o001) or (stat.st_uid == account.uid and bool(stat.st_mode & 0o100))


def _runs(program: Path, account: Account) -> bool:
    """Whether ``account`` can really run ``program``: the one test that covers modes, ACLs and mount options."""
    try:
        done = subprocess.run(  # noqa: S603  (our own program)
            [program, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            capture_output=True,
            timeout=10,
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _elsewhere(state: StateDir) -> Path:
    """A directory below /var/tmp, the same at every start; made anew when it has vanished or is not ours alone."""
    known = state.read("runtime.json").get("runtime_dir")
    if isinstance(known, str) and _ours(Path(known)):
        return Path(known)
    sweep()
    fresh = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ELSEWHERE))
    (fresh / OWNER).write_text(str(state.path), encoding="utf-8")
    fresh.chmod(0o711)
    state.write("runtime.json", {"runtime_dir": str(fresh)})
    return fresh


def sweep(below: Path | None = None) -> None:
    """Removes our directories in /var/tmp whose state directory is gone, or lies inside ``below``."""
    for folder in ELSEWHERE.glob(f"{PREFIX}*"):
        owner = _owner(folder)
        if owner is not None and (not owner.is_dir() or (below is not None and owner.is_relative_to(below))):
            shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> Path | None:
    """The state directory that a directory in /var/tmp belongs to; ``None`` when it is not ours, or not finished."""
    try:
        return Path((folder / OWNER).read_text(encoding="utf-8")) if _ours(folder) else None
    except OSError:
        return None


def _ours(folder: Path) -> bool:
    try:
        stat = folder.lstat()
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and stat.st_uid == os.geteuid() and not stat.st_mode & 0o022


def _copy_programs(into: Path) -> Path:
    """Copies the wheel's tree (40 MB) with the layout its libraries are found by; kept for later starts."""
    target = into / f"site-{PACKAGE.stat().st_mtime_ns}"
    if not target.is_dir():
        draft = Path(tempfile.mkdtemp(dir=into))
        for name in (PACKAGE.name, f"{PACKAGE.name}.libs"):
            if (PACKAGE.parent / name).is_dir():
                shutil.copytree(PACKAGE.parent / name, draft / name)
        draft.chmod(0o755)
        draft.rename(target)
    return target / PACKAGE.name / "pginstall" / "bin"
