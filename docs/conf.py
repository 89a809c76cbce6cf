"""The settings of the documentation site: ``make docs`` writes it into build/docs."""

import os
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator
from typer.testing import CliRunner

import pnf
from pnf.cli.app import app as commands

ROOT = Path(__file__).resolve().parents[1]

project = "pnf"
author = "pnf authors"
copyright = "pnf authors, MIT licence"  # noqa: A001 - the name is Sphinx's
version = release = pnf.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = True
# Types of other libraries have no page here, and their own sites are not asked: a build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!pnf\.).*")]
nitpick_ignore = [("py:class", "pnf.flows.distribution.Flow")]  # a protocol: either flow
highlight_language = "text"

# Headings have the anchors that GitHub gives them.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "html_image"]
# The tutorials are shown as they are committed; `make tutorials` and the tests run them.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Methods that only fulfil another library's interface have no entry: its words may need scripts from the web.
autodoc_inherit_docstrings = False
# The bridges are documented whether or not their libraries are installed.
autodoc_mock_imports = [name for name in ("FrEIA", "nflows", "normflows", "pyro", "sbi", "zuko") if not find_spec(name)]
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"pnf {release}"
html_static_path = ["_static"]
html_css_files = ["pnf.css"]
html_js_files = ["pnf.js"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
}
"""The pages that show a file of the repository's root."""


class RepositoryLinks(SphinxTransform):
    """Lead links to files of the repository to their pages on the site.

    A link to a file that has no page is a download. A link to a folder is plain text here, for it has no page either.
    """

    default_priority = 5

    def apply(self, **_: Any) -> None:
        for kind in (addnodes.pending_xref, addnodes.download_reference):
            for node in list(self.document.findall(kind)):
                if node.get("reftype") == "myst":
                    self.lead(node)
        for image in self.document.findall(nodes.image):
            if path := self.find(image["uri"]):
                image["uri"] = os.path.relpath(path, self.folder)

    @property
    def folder(self) -> Path:
        return Path(self.env.doc2path(self.env.docname)).resolve().parent

    def find(self, target: str) -> Path | None:
        """The file or folder of a target. In what a page includes, targets may start at the root."""
        paths = ((folder / target).resolve() for folder in (self.folder, ROOT))
        return next((path for path in paths if path.exists()), None)

    def lead(self, node: nodes.Element) -> None:
        target, _, anchor = node["reftarget"].partition("#")
        if target in self.env.found_docs:
            return
        # The parser takes any Markdown file for a page of the site, and drops its suffix.
        path = self.find(target + ".md" if node.get("refdomain") == "doc" else target)
        if path is None:
            return
        if page := PAGES.get(path.relative_to(ROOT).as_posix()):
            link = addnodes.pending_xref("", *node.children, **node.attributes)
            link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", page, anchor or None
        elif path.is_dir():
            link = nodes.inline("", "", *node.children)
        else:
            link = addnodes.download_reference("", *node.children, **node.attributes)
            link["refdomain"], link["reftarget"] = None, os.path.relpath(path, self.folder)
        node.replace_self(link)


class NotebookDownload(SphinxTransform):
    """Offer the file of a notebook under its title."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        path = Path(self.env.doc2path(self.env.docname))
        if path.suffix == ".ipynb":
            words = nodes.Text("Download this notebook")
            link = addnodes.download_reference("", "", words, refdoc=self.env.docname, reftarget=path.name)
            title = next(self.document.findall(nodes.title))
            title.parent.insert(1, nodes.paragraph("", "", link))


def mark_formulas(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Make the indented paragraphs of a docstring literal blocks, as they are in Markdown."""

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    filled = [number for number, line in enumerate(lines) if line.strip()]
    for before, after in reversed(list(pairwise(filled))):
        deeper = indent(lines[after]) >= indent(lines[before]) + 4
        if deeper and after > before + 1 and not lines[before].endswith("::"):
            lines[before + 1 : after] = ["", " " * indent(lines[before]) + "::", ""]


def find_name(app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Node) -> nodes.Node | None:
    """The place of what is documented under another name: ``pnf.reference.logit`` under ``pnf.ops.logit``."""
    target = node.get("reftarget", "")
    for module, public in (("pnf.reference.", "pnf.ops."), ("pnf.flows.", "pnf.")):
        if target.startswith(module):
            name = public + target.rpartition(".")[2]
            return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)
    return None


class CommandHelp(SphinxDirective):
    """The help of a command, ``.. command-help:: train``, as a terminal shows it."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        shown = CliRunner().invoke(
            commands, [*self.arguments[0].split(), "--help"], prog_name="pnf", env={"COLUMNS": "90", "NO_COLOR": "1"}
        )
        if shown.exit_code:
            raise self.error(f"pnf {self.arguments[0]} --help: {shown.output}")
        text = "\n".join(line.rstrip() for line in shown.output.strip("\n").splitlines())
        return [nodes.literal_block(text, text, language="text")]


def visit_math(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw themselves: no script has to be fetched from the web."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    # As in TeX, a thin space before a function, and after it unless its argument is in brackets.
    space = '<mspace width="0.17em"></mspace>'
    formula = re.sub(r"</mi>(?=\s*<mi>[a-z]{2})", f"</mi>{space}", formula)
    formula = re.sub(r"<mo>&ApplyFunction;</mo>(?=\s*<m[^o])", space, formula)
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def level_captions(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Give the captions of the navigation, which the theme calls headings, the level that a heading must have."""
    tree = context["furo_navigation_tree"]
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> None:
    """Connect the functions above to the build."""
    app.add_directive("command-help", CommandHelp)
    app.add_transform(RepositoryLinks)
    app.add_transform(NotebookDownload)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    # Before napoleon, which reads the sections of a docstring by their indentation.
    app.connect("autodoc-process-docstring", mark_formulas, priority=400)
    app.connect("missing-reference", find_name)
    # After the theme, which makes the navigation.
    app.connect("html-page-context", level_captions, priority=900)
