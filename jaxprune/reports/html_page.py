"""A template and what fills it -> one self-contained HTML page; everything that is not markup is escaped."""

import itertools
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jaxprune.files import write_atomically
from jaxprune.reports.number_text import cell_text, duration, fixed, is_number, percent, with_noise
from jaxprune.reports.svg import style

FILTERS = (cell_text, duration, fixed, is_number, percent, with_noise)


def write_page(path: Path, template: str, **context: Any) -> Path:
    """Write the page and return its path; a name that the template needs and `context` lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count(1)

    def inline(svg: str) -> Markup:
        """The figure with ids that no other figure of the page has."""
        return Markup(re.sub(r'(id="|url\(#|href="#)', rf"\g<1>f{next(numbers)}-", svg))

    environment.filters |= {function.__name__: function for function in (*FILTERS, inline)}
    environment.globals |= {"colors": Markup(style())}
    write_atomically(path, environment.get_template(template).render(**context))
    return path
