"""How Sphinx builds these pages: `make docs`, without a network and without running a notebook."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "lungkit"
author = "the lungkit authors"
copyright = "the lungkit authors. Research use only: not a medical device, not for diagnosis."
version = release = metadata.version("lungkit")

extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "generate"]
exclude_patterns = ["generated/notebooks/app.ipynb"]
nb_execution_mode = "off"  # the committed outputs are shown
nb_mime_priority_overrides = [("html", "image/png", 0)]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "mystnb.unknown_mime_type",  # progress bars of the notebooks: their text is shown
    "misc.highlighting_failure",
]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # names in signatures that these pages do not describe

html_theme = "furo"
html_title = "lungkit"
html_static_path = ["static"]
html_css_files = ["lungkit.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ec", "color-brand-content": "#7cc4ec"},
    "top_of_page_buttons": [],
}
copybutton_prompt_text = "$ "
