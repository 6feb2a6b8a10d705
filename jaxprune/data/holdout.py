"""Which documents are held out: decided by the hash of their text, so equal texts fall in one split."""

import hashlib


def text_hash(text: str) -> int:
    """64-bit hash of a document."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def held_out(text_hash: int, fraction: float, seed: int) -> bool:
    """Whether a document with this hash belongs to the dev split."""
    bits = hashlib.blake2b(text_hash.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(bits, "little") < fraction * 2.0**64
