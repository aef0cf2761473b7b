"""Sphinx configuration. Nothing is fetched from the network."""

import os
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

import skdml

os.environ["MPLBACKEND"] = "Agg"

project = "skdml"
author = copyright = "The skdml developers"
version = release = skdml.__version__

extensions = [
    "myst_parser",  # for benchmarks/results
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/**.ipynb"]
templates_path = ["_templates"]
nitpicky = True  # a link that leads nowhere is a warning
nitpick_ignore_regex = [("py:.*", r"sklearn\..*")]
html_math_renderer = "mathml"

# The API pages list what stands in each module's __all__, wherever it was written.
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
numpydoc_show_class_members = False  # the class template names the methods
autodoc_typehints = "none"  # the docstrings say it better

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "capture_repr": ("_repr_html_",),  # a display shows its picture, not its address
}

html_theme = "pydata_sphinx_theme"
html_title = f"skdml {version}"
html_static_path = ["_static"]
html_css_files = ["skdml.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "methods": []},  # wide tables
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Pages with no pages below them have nothing to show at the left.
html_sidebars = {path.stem: [] for path in Path(__file__).parent.glob("*.rst") if path.stem not in ("methods", "api")}


def setup(app):
    # Formulas as MathML show without scripts and without a network.
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))
    app.connect("source-read", lambda app, name, source: escape_initials(source))
    # Before numpydoc, which rewrites the footnotes.
    app.connect("autodoc-process-docstring", lambda *args: escape_initials(args[-1]), priority=400)


def escape_initials(lines):
    """Keep a footnote that begins with an author, "A. Zhai", from becoming item A of a list."""
    lines[:] = [re.sub(r"^( *\.\. \[\d+\] [A-Z])\.", r"\1\\.", text, flags=re.MULTILINE) for text in lines]


def visit_math(translator, node):
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(node, as_block=True))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>")
    raise nodes.SkipNode


def mathml(node, as_block=False):
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, node.astext(), location=node)
        return ""
