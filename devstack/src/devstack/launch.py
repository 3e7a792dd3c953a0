"""The last step before a component's own program: runs as ``python -I -S launch.py``, then becomes that program.

Why a program and not ``preexec_fn``: the supervisor's process has threads, and code between fork and exec of such a
process may deadlock. Here everything happens after an ordinary exec, in a process of one thread, in about 30 ms.

It drops root's rights if told so, asks the kernel to kill the process when the supervisor dies (Linux only), and writes
the record by which a later run recognises a process that was left behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def identity(pid: int) -> str | None:
    """Distinguishes this process from a later one of the same pid: boot id and start time (proc(5), stat, field 22).

    ``None`` when there is no such process, when it is a zombie, or where there is no ``/proc``.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may itself contain spaces and parentheses
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def become(uid: int, gid: int, parent: int) -> None:
    """Becomes another user for good (not for ``-1``), to be killed when ``parent`` ends."""
    # Before the change of user: Python's own files may be out of the other user's reach.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.umask(0o077)
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which resets it
    if os.getppid() != parent:  # it may have ended before we asked
        os._exit(1)


def main(record: str, parent: str, uid: str, gid: str, *command: str) -> None:
    """Arguments: file for the record, the supervisor's pid, uid and gid (-1: unchanged), then the command."""
    Path(record).write_text(f"{os.getpid()}\n{identity(os.getpid()) or ''}\n", encoding="ascii")
    become(int(uid), int(gid), int(parent))
    os.execv(command[0], command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main(*sys.argv[1:])
