"""The files of a tokenizer in a Hugging Face directory."""

TOKENIZER_FILES = (
    *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
