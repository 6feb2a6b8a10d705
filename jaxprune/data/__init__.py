"""Text to batches: documents, tokens, packed examples, masked batches. numpy only; nothing here imports jax."""
