"""A small sentence encoder with pruned weights, and tasks of one's own whose labels the words decide, as files."""

import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
from flax.traverse_util import flatten_dict
from workflow import write_yaml

from jaxprune.config.sections import ModelConfig
from jaxprune.models.bert import BERT, bert
from jaxprune.models.folder import write_folder
from jaxprune.models.model import Head
from jaxprune.pruning import init_masks, keep_top

TEXT = "the invoice is wrong late app crashes on start hello there thanks a lot please help now"
WORDS = TEXT.split()
TOPICS = {"invoice": "billing", "crashes": "bug"}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MODULES = [{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "name": "1", "path": "1_Pooling"}]


def write_model(folder: Path, head: Head, *, labels: int = 0, **extra: Any) -> Path:
    """A Hugging Face directory of a BERT (2 layers x 32) with half of its encoder pruned; `extra` keys of its config.

    Its classifier's logits spread over several units.
    """
    pieces = [*BERT.special_tokens, *WORDS]
    vocabulary = {"vocab.txt": "".join(f"{piece}\n" for piece in pieces).encode()}
    cfg = ModelConfig(vocab_size=len(pieces), **SHAPE)
    params = jax.device_get(jax.jit(bert(cfg, head=head, num_labels=labels).init)(jax.random.key(0)))
    if "classifier" in params:
        params["classifier"]["kernel"] = 3 * params["classifier"]["kernel"]
    masks = init_masks(params, BERT.prunable[:-1])
    masks = jax.tree.map(lambda leaf, mask: None if mask is None else keep_top(abs(leaf), 0.5), params, masks)
    masks = jax.device_get(masks)
    write_folder(folder, cfg, params, head=head, masks=masks, tokenizer=vocabulary, extra_config=extra)
    return folder


def write_encoder(folder: Path, *, pooling: str = "mean") -> Path:
    """A sentence-transformers directory of such a BERT without a head."""
    write_model(folder, "similarity")
    settings = POOLING | {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (folder / "1_Pooling").mkdir()
    for name, content in {"1_Pooling/config.json": settings, "modules.json": MODULES}.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "LICENSE").write_text("free")
    return folder


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Examples with a label of every kind."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        body, other = (" ".join(rng.choices(WORDS, k=rng.randint(2, 14))) for _ in range(2))
        both = {*body.split()} & {*other.split()}
        made.append(
            {
                "body": body,
                "other": other,
                "topic": next((topic for word, topic in TOPICS.items() if word in body), "other"),
                "tags": ";".join(word for word in ("help", "thanks") if word in body),
                "stars": len(body.split()) / 4,
                "alike": round(5 * len(both) / len({*body.split(), *other.split()}), 3),
            }
        )
    return made


def write_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """`train.csv` and `dev.csv`, and a task of each kind that reads them, by its kind."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", 32, 0), ("dev", 13, 1)):
        pandas.DataFrame(rows(count, seed)).to_csv(folder / f"{split}.csv", index=False)
    files = {"train": str(folder / "train.csv"), "dev": str(folder / "dev.csv"), "text": "body"}
    held_out = {"train": files["train"], "dev_fraction": 0.25, "text": "body"}
    topics = {"label": "topic", "labels": ["other", "bug", "billing"], "class_weights": "balanced"}
    return {
        "single_label": {"name": "topics", **held_out, **topics},
        "multi_label": {"name": "tags", **files, "label": "tags", "kind": "multi_label", "separator": ";"},
        "regression": {
            "name": "stars", **files, "label": "stars", "kind": "regression", "metrics": ["mean_squared_error"],
        },
        "similarity": {
            "name": "alike", **files, "text": ["body", "other"], "label": "alike", "kind": "similarity",
            "bounds": [0, 5],
        },
    }  # fmt: skip


def write_config(path: Path, encoder: str | Path, tasks: list[Any], **changes: Any) -> Path:
    """A fine-tune config of these tasks, written to `path`."""
    config = {
        "command": "finetune",
        "tasks": tasks,
        "init_from": str(encoder),
        "learning_rates": [1e-3],
        "epochs": 1,
        "batch_size": 8,
        "max_len": 24,
        "train": {"log_every": 1},
    }
    return write_yaml(path, config | changes)


def paths_of(tree: Any) -> dict[str, np.ndarray]:
    """{path: leaf} of a tree on the host."""
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items() if leaf is not None}
