"""Render reports as self-contained HTML pages."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdr_lightning.reporting.generator import GENERATOR


def render_page(template: str, package: str = "sdr_lightning.reporting.pages", **values: Any) -> str:
    """Render a template of the folder ``templates`` of a package with the given variables, HTML-escaped.

    Args:
        template: file name, such as ``study.html``.
        package: whose templates.
        values: every variable that the template uses; a missing one raises ``jinja2.UndefinedError``.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(generator=GENERATOR, **values)
