"""HTML pages for people, from templates that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["filled"]


def filled(template: Path, /, **values: Any) -> str:
    """A template (Jinja) with its values, each of which is escaped; the same values give the same text.

    template: a file of the package; what it includes lies in its folder. A name in it that has no value is an error
    (jinja2.UndefinedError), not an empty place. Lines that hold nothing but a statement leave no blank line.
    """
    import jinja2  # here, because only who makes a page waits for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
