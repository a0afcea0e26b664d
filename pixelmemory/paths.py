"""Paths as users give them, made absolute once: the working directory may change while a store is open."""

from __future__ import annotations

import os
from pathlib import Path

from pixelmemory.errors import StoreError, brief

__all__ = ["absolute_path"]


def absolute_path(given: str | os.PathLike[str], origin: str) -> Path:
    """``given`` as an absolute path with ``~`` expanded: ``~/notes``, ``notes`` and ``../notes`` alike.

    Symbolic links stay in it, so that a link to a folder works, and one that is pointed elsewhere later is noticed by
    whoever holds the folder. Only the part up to the last ``..`` is resolved, because ``link/..`` is the parent of what
    the link points to.

    Args:
        given: not checked for existence.
        origin: the argument or variable that it comes from, for the error.

    Raises:
        StoreError: it cannot be a path: it is empty, contains NUL, names an unknown user, or the working directory that
            it is relative to is gone.
    """
    try:
        text = os.fsdecode(given)
        if not text:
            raise ValueError("it is empty")
        if "\0" in text:
            raise ValueError("it contains NUL")
        os.fsencode(text)  # fails for a lone surrogate, which no file name can contain
        if text.startswith("~"):
            text = _expanded(text)
        parts = Path(text if os.path.isabs(text) else os.path.join(os.getcwd(), text)).parts
    except (OSError, ValueError) as error:
        raise StoreError(f"{origin} cannot be used: {brief(given)}: {error}") from error
    if ".." not in parts:
        return Path(*parts)
    end = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:end])), *parts[end:])


def _expanded(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded == text:
        user = text.split("/", 1)[0][1:]
        raise ValueError(
            f"there is no user {user!r}"
            if user
            else "your home folder is not known: HOME is not set, and the system has no account for this user id"
        )
    return expanded
