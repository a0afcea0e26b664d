"""How Sphinx builds these pages: ``make docs``, with warnings as errors."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

project = "Pixelmemory"
author = "The Pixelmemory developers"
copyright = "The Pixelmemory developers, Apache License 2.0"  # noqa: A001 - the name that Sphinx reads
release = version = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# what commands write is included by pages, and is no page of its own
exclude_patterns = ["_build", "generated/*"]
html_theme = "furo"
html_title = f"Pixelmemory {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


# Napoleon reads "a text: and more" beside an attribute as a type and a description; here it is a text.
_attribute_texts: dict[str, list[str]] = {}


def _save_attribute(_app: object, what: str, name: str, _object: object, _options: object, lines: list[str]) -> None:
    if what == "attribute":
        alias = bool(lines) and lines[0].startswith("Alias for field number")  # what an uncommented field says
        _attribute_texts[name] = [] if alias else list(lines)


def _restore_attribute(_app: object, what: str, name: str, _object: object, _options: object, lines: list[str]) -> None:
    if what == "attribute":
        lines[:] = _attribute_texts.pop(name)


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _save_attribute, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", _restore_attribute, priority=600)
