"""How Sphinx builds these pages: `make docs`, without a network and without running a notebook."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (0, 1)]  # generate.py, and lungkit of this folder

import lungkit  # noqa: E402

project = "lungkit"
author = "the lungkit authors"
copyright = "the lungkit authors. Research use only: not a medical device, not for diagnosis."
version = release = lungkit.__version__

extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "generate"]
nb_execution_mode = "off"  # the committed outputs are shown
nb_code_prompt_show = "Show the solution"  # of an exercise: cells tagged hide-cell
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes_action = "qe"  # quotes and ellipses; "--split" keeps its two dashes

suppress_warnings = ["ref.python"]  # a name in a signature that two modules have is not linked

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
