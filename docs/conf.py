"""The documentation as a site: ``sphinx-build -W docs site/html``; needs no network.

Sphinx and MyST rather than MkDocs, which has had no release since August 2024.
"""

import importlib.metadata
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generate import write_pages  # noqa: E402

project = "jaxlm"
author = "the jaxlm authors"
copyright = "the jaxlm authors; Apache-2.0"
release = importlib.metadata.version("jaxlm")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["Thumbs.db", "**.ipynb_checkpoints"]

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3

# The notebook is run at every build, and an error in it is one of the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# A docstring's `name` is code, as ``name`` is.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}

html_theme = "furo"
html_title = "jaxlm"
html_show_sphinx = False
html_copy_source = False


def setup(app):
    """Write what is made from the code before Sphinx looks for pages."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir)))
    app.connect("source-read", find_the_root)


def find_the_root(app, docname, source):
    """A link to CONTRIBUTING.md at the root is, on the site, one to its page."""
    del app, docname
    source[0] = source[0].replace("](../CONTRIBUTING.md", "](generated/contributing.md")
