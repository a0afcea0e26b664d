"""Which process this is, without asking the kernel: a system call for each append is a tenth of its time."""

from __future__ import annotations

import ctypes
import os

__all__ = ["forks", "never_collect"]

_forks = 0


def forks() -> int:
    """How many forks lie between the first process that imported this and the one that asks."""
    return _forks


def never_collect(inherited: object) -> None:
    """Keep ``inherited`` until this process ends, also while the interpreter is taken down.

    For what a child of a fork has of its parent's: letting go of it could reach what both share.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)
