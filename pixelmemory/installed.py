"""Refuses to run beside another distribution that installs a package of the same import name.

The index has a distribution ``pixelmemory`` of another project (version 0.2.0, looked at on the day this was written:
``__init__``, ``config``, ``context``, ``indexing``, ``memory`` and ``vision``, and a class ``Memory``). Ours is called
``pixelmemory-engine`` and installs a package ``pixelmemory`` too. pip lets both in, and ``__init__.py`` is then that of
whichever came last; uninstalling either removes it. Where theirs came last this module is not reached by an import of
``pixelmemory``, only by our command.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pixelmemory.errors import PackageConflictError

__all__ = ["check_installed"]

_OTHER = "pixelmemory"
_SHARED_FILE = "pixelmemory/__init__.py"


@functools.cache  # what passed once is not asked again; an error is
def check_installed() -> None:
    """Look for the other distribution; about 1.5 ms, the first time that it passes in a process.

    An editable install of this project under its earlier name lists no file of the package, and does no harm.

    Raises:
        PackageConflictError: it is installed.
    """
    import importlib.metadata  # costs 20 to 40 ms where nothing has imported it yet, so not at import

    for found in importlib.metadata.distributions(name=_OTHER):
        files = found.files or ()
        if any(file.as_posix() == _SHARED_FILE for file in files):
            raise PackageConflictError(found.version, Path(str(found.locate_file(""))))
