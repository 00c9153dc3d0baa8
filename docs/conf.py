"""How Sphinx builds the documentation: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accesspass import __version__

project = "AccessPass for Django"
author = "AccessPass contributors"
copyright = "2026, AccessPass contributors"
release = __version__
extensions: list[str] = []
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"AccessPass {release}"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
