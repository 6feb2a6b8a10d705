"""Whole runs: pre-training, fine-tuning, the demo. Knows every other part; only the command line imports it."""
