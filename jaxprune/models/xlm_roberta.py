"""XLM-R (Conneau et al. 2020): RoBERTa with a vocabulary of a hundred languages."""

from functools import partial

from jaxprune.models.roberta import ROBERTA, config_from_hf

XLM_ROBERTA = ROBERTA._replace(
    name="xlm-roberta",
    config_from_hf=partial(config_from_hf, architecture="xlm-roberta"),
    classes={head: f"XLM{name}" for head, name in ROBERTA.classes.items()},
)
