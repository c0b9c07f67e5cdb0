"""Sphinx: pages in Markdown (MyST), the reference from the docstrings, warnings are errors (`make docs`)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import structmat  # noqa: E402  (the path above makes a plain clone work)

project = "structmat"
author = "the structmat contributors"
project_copyright = "the structmat contributors, Apache-2.0"
version = release = structmat.__version__

extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "readable_docstrings", "type_table", "adapter_table", "api_modules"),
    "run_example",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False

# Docstrings quote code in single or double backticks; both mean code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"structmat {release}"
html_copy_source = False
html_show_sphinx = False
