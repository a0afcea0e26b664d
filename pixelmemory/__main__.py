"""``python -m pixelmemory``: the command-line program."""

from __future__ import annotations

import sys

from pixelmemory.cli import main

if __name__ == "__main__":
    sys.exit(main())
