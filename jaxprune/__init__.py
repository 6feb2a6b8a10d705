"""Weight pruning of BERT during pre-training, in JAX."""

__version__ = "0.1.0"
