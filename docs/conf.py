"""Configuration of the documentation site: ``make docs``. No network is needed."""

import contextlib
import io
import os
import posixpath
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent
os.environ["COLUMNS"] = "100"  # width of the commands' help
sys.path.insert(0, str(ROOT))

from sdr_lightning import __version__  # noqa: E402
from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS  # noqa: E402
from sdr_lightning.cli.main import main  # noqa: E402

project, author, release = "sdr_lightning", "The sdr_lightning maintainers", __version__
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["*.template.md", "_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "attrs_inline"]
suppress_warnings = ["myst.header"]  # generated reports begin at any level

html_theme = "furo"
html_title = f"sdr_lightning {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
highlight_language = "none"
pygments_style, pygments_dark_style = "friendly", "github-dark"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True
python_use_unqualified_type_names = True

FROM_ROOT = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Pages whose text is a file beside the folder of the documentation."""
BELOW = {"methods": "methods/*", "results/README": "*/report"}
"""Pages below a page, in the navigation."""
REPOSITORY = "repository"
"""Folder of the site with copies of the files of the repository that pages link to."""
NESTED = ("data", "noise")
"""Commands whose second words have help of their own."""

_LINK = re.compile(
    r"(?<!\!)\[(?P<text>[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\((?P<target>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)"
)
_logger = logging.getLogger(__name__)
_linked: set[Path] = set()


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill a page in, and let its links to files of the repository lead to copies of them."""
    name = FROM_ROOT.get(docname)
    folder = (ROOT / name if name else DOCS / f"{docname}.md").parent
    text = (ROOT / name).read_text(encoding="utf-8") if name else source[0]
    if docname == "cli":
        text += command_reference()
    if docname in BELOW:
        text += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n\n{BELOW[docname]}\n```\n"

    def link(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / found["target"]))
        if not path.exists():
            _logger.warning("link to %s, which does not exist", found["target"], location=docname)
            return found[0]
        if path.suffix == ".md" and path.is_relative_to(DOCS):
            return found[0] if not name else f"[{found['text']}]({os.path.relpath(path, DOCS)}{found['anchor'] or ''})"
        for page, file in FROM_ROOT.items():
            if path == ROOT / file:
                target = os.path.relpath(DOCS / f"{page}.md", (DOCS / docname).parent)
                return f"[{found['text']}]({target}{found['anchor'] or ''})"
        if path.is_dir():
            return found["text"]
        _linked.add(path)
        place = posixpath.join(REPOSITORY, path.relative_to(ROOT).as_posix())
        address = posixpath.relpath(place, posixpath.dirname(docname) or ".")
        return f'<a href="{address}">{found["text"]}</a>'

    source[0] = _LINK.sub(link, text)


def command_reference() -> str:
    """Return the help of every command, from its parser."""
    parts = []
    for command in COMMANDS:
        for words in [(command, name) for name in (SUBCOMMANDS[command] if command in NESTED else ())] or [(command,)]:
            parts.append(f"\n## sdr {' '.join(words)}\n\n```text\n{help_of(words).strip()}\n```\n")
    return "".join(parts)


def help_of(words: tuple[str, ...]) -> str:
    """Return what a command prints for ``--help``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue().replace(f"{ROOT}/", "")


def readable(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn parts of docstrings that are plain text in the sources into reStructuredText: references and bars."""
    references, text = False, []
    for line in lines:
        if references and line.strip():
            item = line.strip()
            text += ["", f"    {_bare(item)}"] if item.startswith("[") else [f"    {_bare(item)}"]
            continue
        references = line.strip() == "References:"
        text.append(_bare(line))
    lines[:] = text


def _bare(line: str) -> str:
    """A line whose bars are no substitutions; literals stay."""
    parts = line.split("``")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "``".join(parts)


def copy_linked(app: Sphinx, error: Exception | None) -> None:
    """Copy the files of the repository that pages link to."""
    for path in _linked if error is None else ():
        target = Path(app.outdir) / REPOSITORY / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the functions above to the build."""
    app.connect("source-read", read_page)
    app.connect("build-finished", copy_linked)
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon
    return {"parallel_read_safe": False}
