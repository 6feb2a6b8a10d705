"""The weights of a teacher, and what they must have in common with the run that learns from them."""

import hashlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.data import tokenizer
from jaxprune.errors import UserError
from jaxprune.experiments.teacher import Lesson, Teacher
from jaxprune.experiments.weights import Weights, check_vocabulary, lacking, read_weights, tokenizer_beside
from jaxprune.models import architecture_named

NEXT_SENTENCE = ("pooler/", "nsp/")
"""What a pretraining head needs for next sentences alone."""


def check_pupil(teacher: Teacher, vocabulary: tokenizer.Vocabulary, name: str, length: int) -> None:
    """UserError where `vocabulary`, whose place is `name`, is not the teacher's, or `length` tokens are too many."""
    cfg, record = teacher.cfg, architecture_named(teacher.model.architecture)
    where = f"teacher.source = {cfg.source}"
    if length > (most := record.max_tokens(teacher.model)):
        raise UserError(f"{where}: takes {most} tokens, the run has up to {length}; choose another teacher")
    check_vocabulary(vocabulary, teacher.model, name, where)
    try:
        own = tokenizer.load(tokenizer_beside(cfg.source), cfg.revision, special=record.special_tokens)
    except UserError:  # a folder of weights alone
        return
    if own.sha256 != vocabulary.sha256:
        differs = next((i for i, pair in enumerate(zip(own.pieces, vocabulary.pieces)) if pair[0] != pair[1]), None)
        which = f"piece {differs} differs" if differs is not None else f"{own.size} pieces, not {vocabulary.size}"
        raise UserError(f"{where}: its vocabulary is not that of {name} ({which}); both need the same")


def lesson(teacher: Teacher, weights: Weights | None = None, *, pairs: bool = True) -> Lesson:
    """The params of a teacher, masked and in its type, from its source, or from what of it was read.

    `pairs`: whether next sentences are compared. UserError for a head that is missing.
    """
    cfg = teacher.cfg
    weights = weights or read_weights(cfg.source, cfg.revision, cfg.variant)
    drawn = lacking(weights, teacher.build().init)
    if missing := [path for path in drawn if pairs or not path.startswith(NEXT_SENTENCE)]:
        remedy = "train the teacher with it, or set teacher.hardness = 0 and compare teacher.hidden or relations"
        raise UserError(f"teacher.source = {cfg.source}: has no {', '.join(missing)}; {remedy}")
    held: dict[str, Any] = flatten_dict(weights.params, sep="/")
    masks: dict[str, Any] = flatten_dict(weights.masks, sep="/") if weights.masks is not None else {}
    shapes: dict[str, Any] = flatten_dict(teacher.shapes(), sep="/")
    digest, flat = hashlib.sha256(), {}
    for path, leaf in shapes.items():
        whole = np.asarray(held[path] if path not in drawn else np.zeros(leaf.shape), np.float32)
        if masks.get(path) is not None:  # dense values may be kept under soft masks
            whole = np.where(masks[path], whole, np.float32(0))
        digest.update(path.encode() + np.ascontiguousarray(whole).tobytes())
        flat[path] = whole.astype(leaf.dtype)
    return Lesson(unflatten_dict(flat, sep="/"), digest.hexdigest())
