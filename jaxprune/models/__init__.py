"""Everything that knows an architecture: one record in one file each, their losses, and Hugging Face directories."""

import difflib

from jaxprune.errors import UserError
from jaxprune.models.architecture import Architecture
from jaxprune.models.bert import BERT
from jaxprune.models.distilbert import DISTILBERT
from jaxprune.models.roberta import ROBERTA
from jaxprune.models.xlm_roberta import XLM_ROBERTA

ARCHITECTURES: dict[str, Architecture] = {record.name: record for record in (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA)}
"""Every architecture under its name, Hugging Face's `model_type`."""


def architecture_named(name: str, key: str = "model.architecture") -> Architecture:
    """The architecture of that name; UserError with the key, the list and the nearest where there is none."""
    if name not in ARCHITECTURES:
        nearest = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"{key} = {name!r} is unknown; use one of {', '.join(ARCHITECTURES)} (the nearest is {nearest!r})"
        )
    return ARCHITECTURES[name]
