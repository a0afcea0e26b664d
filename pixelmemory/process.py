"""Which process this is, without asking the kernel: a system call for each append is a tenth of its time."""

from __future__ import annotations

import os

__all__ = ["forks"]

_forks = 0


def forks() -> int:
    """How many forks lie between the first process that imported this and the one that asks."""
    return _forks


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)
