"""The report as one HTML page that needs no other file."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdr_lightning.reporting import formatting, wording
from sdr_lightning.reporting.contents import Contents
from sdr_lightning.reporting.examples import DIRECTIONS


def render_html(contents: Contents) -> str:
    """The page, with style and pictures inside it."""
    environment = Environment(
        loader=PackageLoader("sdr_lightning.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("template.html")
    return template.render(
        contents=contents, study=contents.study, directions=DIRECTIONS, say=wording, write=formatting
    )
