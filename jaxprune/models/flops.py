"""Arithmetic that a BERT needs, counted from its shape alone."""

from jaxprune.config.sections import ModelConfig


def train_flops(model: ModelConfig, *, seq_len: int, predictions: int) -> float:
    """FLOPs of forward and backward for one sequence: 3 x the forward matrix products (a multiply-add is 2)."""
    d, inner, n = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    per_token = n * (2 * (4 * d * d + 2 * d * inner) + 4 * seq_len * d)
    heads = predictions * 2 * (d * d + d * model.vocab_size) + 2 * (d * d + 2 * d)
    return 3.0 * (seq_len * per_token + heads)
