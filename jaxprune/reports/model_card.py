"""The README.md of a model: what it is for, what was pruned, how it scores, and how to make it again."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"


def model_card(**context: Any) -> str:
    """The text in Markdown; a name that the template needs and `context` lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.j2").render(**context)
