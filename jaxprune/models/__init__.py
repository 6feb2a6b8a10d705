"""BERT: pure functions over a plain dict of params, its losses, and Hugging Face directories."""

from jaxprune.models.bert import HEADS, Head, Model, bert

__all__ = ["HEADS", "Head", "Model", "bert"]
