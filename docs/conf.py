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
exclude_patterns = ["_build"]
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


def _keep_attribute_text(_app: object, what: str, _name: str, _object: object, _options: Any, lines: list[str]) -> None:
    """Attributes are described by plain text: no type before the first colon, nothing where there is no comment."""
    if what == "attribute" and lines:
        if lines[0].startswith("Alias for field number"):
            lines.clear()
        else:
            lines.insert(0, "")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _keep_attribute_text, priority=400)  # before napoleon
