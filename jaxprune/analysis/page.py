"""A template and what fills it -> one self-contained HTML page; everything that is not Markup is escaped."""

from pathlib import Path
from typing import Any


def render(template: str, **context: Any) -> str:
    """The page as text; a name that the template needs and `context` lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
