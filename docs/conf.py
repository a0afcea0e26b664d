"""How Sphinx builds these pages: ``make docs``, with warnings as errors."""

from __future__ import annotations

import tomllib
from pathlib import Path

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
