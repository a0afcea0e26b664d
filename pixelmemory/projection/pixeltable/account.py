"""The user that the embedded PostgreSQL runs under, and what that user may reach."""

from __future__ import annotations

import logging
import os
import pwd
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause

__all__ = ["Account"]

_logger = logging.getLogger("pixelmemory.projection")

#: as root the server runs as this user: PostgreSQL refuses to run as root
SYSTEM_USER = "pgserver"


class Account(NamedTuple):
    """Under which user PostgreSQL runs: this one, or as root another."""

    #: None: this process's own
    uid: int | None
    gid: int
    programs: Path

    @classmethod
    def of(cls, data_folder: Path, programs: Path) -> Account:
        if os.geteuid() != 0:
            return cls(None, -1, programs)
        if (data_folder / "PG_VERSION").exists() and (owner := data_folder.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid, programs)
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            try:
                # as Pixeltable's own launcher makes it
                subprocess.run(["useradd", "-s", "/bin/bash", SYSTEM_USER], check=True, capture_output=True, text=True)  # noqa: S607
                entry = pwd.getpwnam(SYSTEM_USER)
            except (OSError, subprocess.CalledProcessError, KeyError) as error:
                reason = getattr(error, "stderr", "") or error
                raise ProjectionUnavailableError(
                    f"PostgreSQL does not run as root, and a user {SYSTEM_USER!r} for it could not be made: {reason}. "
                    "Make that user, run as an ordinary user, or name a database in PIXELTABLE_DB_CONNECT_STR",
                    UnavailableCause.NOT_STARTED,
                ) from error
        return cls(entry.pw_uid, entry.pw_gid, programs)

    def run(
        self, command: Sequence[str], *, timeout_seconds: float, keep: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of PostgreSQL's to its end; in a session of its own, so that Ctrl-C does not reach it.

        Args:
            keep: descriptors that it has, too.
        """
        identity: dict[str, Any] = {}
        if self.uid is not None:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        # files, not pipes: the server, which is launched in here, may hold a pipe open
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            try:
                done = subprocess.run(
                    command, check=False, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd="/",
                    env=environment, start_new_session=True, umask=0o077, timeout=timeout_seconds, pass_fds=keep,
                    **identity,
                )  # fmt: skip
            except (OSError, subprocess.SubprocessError) as error:
                raise ProjectionUnavailableError(
                    f"{command[0]} could not be run: {error}", UnavailableCause.NOT_STARTED
                ) from error
            for stream in (stdout, stderr):
                stream.seek(0)
            return subprocess.CompletedProcess(list(command), done.returncode, stdout.read(), stderr.read())

    def let_in(self, folder: Path) -> None:
        """Let this user, and nobody else, pass through the folders above ``folder`` and above the programs."""
        if self.uid is None:
            return
        for path in (folder, self.programs):
            for above in reversed(path.parents):
                status = above.stat()
                if not status.st_mode & 0o001 and status.st_uid != self.uid:
                    _let_through(above, self.uid)
        if (self.programs / "postgres").stat().st_mode & 0o005 != 0o005:  # installed with a narrow umask
            installed = self.programs.parent
            for path in (installed, *installed.rglob("*")):
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(mode | 0o044 | (0o011 if mode & 0o100 else 0))


def _let_through(folder: Path, uid: int) -> None:
    """Give the user ``uid`` the right to pass through ``folder``: not to list it, and no other user."""
    try:
        value = _with_search(_acl(folder), uid)
        os.setxattr(folder, "system.posix_acl_access", value)
        return
    except (AttributeError, OSError) as error:  # macOS, or a file system without such lists
        _logger.warning("%s has no access list (%s): every user may pass through it now, not list it", folder, error)
    try:
        folder.chmod(folder.stat().st_mode | 0o001)
    except OSError as error:
        raise ProjectionUnavailableError(
            f"the user of the database cannot get through {folder}: {error}. Choose another PIXELTABLE_HOME",
            UnavailableCause.NOT_STARTED,
        ) from error


#: kinds of entries of a POSIX access list, as Linux writes them (linux/posix_acl.h), and an entry without a user's id
_ACL_OWNER, _ACL_USER, _ACL_GROUP_OWNER, _ACL_MASK, _ACL_OTHER, _ACL_NO_ID = 0x01, 0x02, 0x04, 0x10, 0x20, 0xFFFFFFFF
_ACL_VERSION = 2


def _acl(folder: Path) -> list[tuple[int, int, int]]:
    """The access list of ``folder``: kind, permissions, id; what its mode says where it has none."""
    try:
        value = os.getxattr(folder, "system.posix_acl_access")
        return [struct.unpack_from("<HHI", value, at) for at in range(4, len(value), 8)]
    except OSError:
        mode = folder.stat().st_mode
        kinds = ((_ACL_OWNER, 6), (_ACL_GROUP_OWNER, 3), (_ACL_OTHER, 0))
        return [(kind, mode >> shift & 7, _ACL_NO_ID) for kind, shift in kinds]


def _with_search(entries: list[tuple[int, int, int]], uid: int) -> bytes:
    """``entries`` with the right of ``uid`` to pass; the mask, which bounds users and groups, lets that through."""
    kept = [each for each in entries if each[0] != _ACL_MASK and (each[0], each[2]) != (_ACL_USER, uid)]
    bounded = [each[1] for each in kept if each[0] not in (_ACL_OWNER, _ACL_OTHER)]
    mask = 1
    for permissions in bounded:
        mask |= permissions
    kept += [(_ACL_USER, 1, uid), (_ACL_MASK, mask, _ACL_NO_ID)]
    packed = [struct.pack("<HHI", *each) for each in sorted(kept, key=_acl_order)]
    return struct.pack("<I", _ACL_VERSION) + b"".join(packed)


def _acl_order(entry: tuple[int, int, int]) -> tuple[int, int]:
    return entry[0], entry[2]
