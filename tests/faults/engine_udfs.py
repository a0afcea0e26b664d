"""A function for a user's computed column that fails on some contents; Pixeltable finds it by this module's path."""

from __future__ import annotations

import pixeltable as pxt

__all__ = ["refuse_poison"]


@pxt.udf  # type: ignore[untyped-decorator]
def refuse_poison(content: str) -> str:
    """Fails where ``content`` begins with "poison"."""
    if content.startswith("poison"):
        raise ValueError("poison")
    return content.upper()
