"""The tables of a study, from its workdirs alone: what every figure and verdict of the report is made of."""

import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.analysis import weights
from jaxprune.analysis.features import similarity
from jaxprune.analysis.heads import head_sparsity
from jaxprune.analysis.magnitude_pruning import magnitude_masks, removed_magnitude
from jaxprune.analysis.mask_distance import mask_distance
from jaxprune.analysis.paths import flat, kinds, layer_of
from jaxprune.analysis.rank_movement import by_rank, movement
from jaxprune.analysis.study_tables import PRETRAINED, UNTUNED, read_tables, transfer_table, write_table
from jaxprune.config.commands import FinetuneConfig, PretrainConfig
from jaxprune.config.load import read_yaml
from jaxprune.config.sections import ModelConfig
from jaxprune.data import tokenizer
from jaxprune.data.mlm import PretrainData
from jaxprune.errors import UserError
from jaxprune.experiments.weights import stored_config
from jaxprune.models import architecture_named
from jaxprune.models.architecture import Architecture
from jaxprune.models.folder import read_folder
from jaxprune.training.workdir import read_records

log = logging.getLogger("jaxprune")

FEATURE_TOKENS = 25_000
"""Tokens of held-out text that features are compared on, as in the paper."""
_AGAIN = re.compile(r"-seed\d+$")
KEEP_ROWS = 96
"""Rows and columns of a heatmap, at most."""
Row = dict[str, Any]


class Pretrained(NamedTuple):
    """A finished pre-training run of a study."""

    name: str
    variant: str
    target: float
    workdir: Path
    cfg: PretrainConfig
    result: Row

    @property
    def label(self) -> Row:
        """The columns that say which run a row is of."""
        return {"name": self.name, "variant": self.variant, "target": self.target}

    @property
    def again(self) -> bool:
        """Whether it repeats a run of its cell with another seed; what is measured of weights is of the first run."""
        return bool(_AGAIN.search(self.name))

    @property
    def architecture(self) -> Architecture:
        """What is known of its architecture."""
        return architecture_named(self.cfg.model.architecture)

    def load(self) -> "Weights":
        """From the Hugging Face directory that the run wrote, with its masks."""
        folder = read_folder(self.workdir / "hf", head="pretraining")
        return Weights(folder.params, flat(folder.params), flat(folder.masks or {}))


class Weights(NamedTuple):
    """Of one model, on the host: nested params, the same as {path: array}, and the masks of the prunable matrices."""

    tree: Any
    params: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]

    @property
    def prunable(self) -> dict[str, np.ndarray]:
        """The matrices that have a mask."""
        return {path: self.params[path] for path in self.masks}


def write_tables(study: Path) -> Path:
    """Write `study/tables/*.csv` and the same as Parquet; returns that directory.

    Unfinished runs are left out; a table that no finished run can fill is not written (and an old one removed).
    UserError when the study has no finished run at all.
    """
    study = Path(study).expanduser()
    runs, dense = pretrained(study), _dense(study)
    tuned = list(_finetuned(study, {run.name: run for run in runs}))
    if not runs and not tuned and dense is None:
        raise UserError(f"{study}: has no finished run; let `jaxprune study` finish one first")
    every = ([dense] if dense else []) + runs
    tables: dict[str, list[Row]] = {"runs": tuned, "pretrain": [_pretrain_row(run) for run in every]}
    runs, every = ([run for run in among if not run.again] for among in (runs, every))
    tables["curves"] = [row for run in every for row in _curve(run)]
    tables["churn"] = [row for run in runs for row in _churn(run)]
    if dense is not None:
        log.info("%s: measuring %d models", study.name, len(every))
        tables |= _of_models(study, dense, runs)
    out = study / "tables"
    for name, rows in tables.items():
        write_table(out / f"{name}.csv", rows)
    write_table(out / "transfer.csv", transfer_table(read_tables(out)["runs"]))
    return out


def pretrained(study: Path) -> list[Pretrained]:
    """The finished runs under `runs/pretrain`, by variant and target; a directory is called `<variant>-s<sparsity>`,
    with `-seed<seed>` behind it where it repeats another."""
    runs = (_read_pretrained(workdir) for workdir in sorted((study / "runs" / "pretrain").glob("*")))
    return sorted((run for run in runs if run), key=lambda run: (run.variant, run.target))


def name_parts(name: str) -> tuple[str, float]:
    """(variant, target) of a run's name: `soft-s0.7-seed1` -> ("soft", 0.7); without a sparsity the target is 0."""
    parts = re.fullmatch(r"(.+)-s(\d[\d.e-]*)", _AGAIN.sub("", name))
    return (parts[1], float(parts[2])) if parts else (name, 0.0)


def _read_pretrained(workdir: Path) -> Pretrained | None:
    cfg = stored_config(workdir)
    if not isinstance(cfg, PretrainConfig) or not (workdir / "result.json").is_file():
        return None
    result = json.loads((workdir / "result.json").read_text())
    return Pretrained(workdir.name, *name_parts(workdir.name), workdir, cfg, result)


def _dense(study: Path) -> Pretrained | None:
    """The dense start: the one elsewhere that the study's config names, else the study's own."""
    config = study / "config.yaml"
    elsewhere = read_yaml(config).get("dense") if config.is_file() else None
    run = _read_pretrained(Path(elsewhere).expanduser() if elsewhere else study / "runs" / "dense")
    return run._replace(name="dense", variant="dense", target=0.0) if run else None


def _finetuned(study: Path, runs: dict[str, Pretrained]) -> Iterator[Row]:
    for path in sorted((study / "runs" / "finetune").rglob("result.json")):
        condition, *rest = path.parent.relative_to(study / "runs" / "finetune").parts
        result = json.loads(path.read_text())
        if "task" not in result:
            continue
        name = rest[0] if len(rest) > 2 else condition
        variant, target = name_parts(name)
        before = Path(read_yaml(path.with_name("config.yaml"))["init_from"]).expanduser()
        start = runs.get(before.name)
        kept = ("task", "learning_rate", "seed", "metric", "score", "accuracy", "matthews", "spearman", "train_loss")
        yield {
            "condition": condition,
            "variant": variant,
            "target": target,
            "sparsity": result["sparsity"],
            **{key: result.get(key) for key in kept},
            "majority": result.get("majority_accuracy"),
            "start": start.name if start else None,
            "pretrain_loss": start.result["dev"]["loss"] if start else None,
            "tuned_epochs": _epochs(before) if condition == "after_finetuning" else None,
            **{key: result.get(key) for key in ("train_examples", "dev_examples", "steps")},
        }


def _epochs(tuned: Path) -> int | None:
    """Epochs of a fine-tuned run."""
    path = tuned / "config.yaml"
    return read_yaml(path).get("epochs", FinetuneConfig().epochs) if path.is_file() else None


def _pretrain_row(run: Pretrained) -> Row:
    dev = run.result["dev"]
    names = {"dev_loss": "loss", "dev_mlm": "mlm", "dev_nsp": "nsp"} | {
        key: key for key in ("mlm_accuracy", "nsp_accuracy")
    }
    row = {**run.label, "sparsity": run.result["sparsity"], **{new: dev.get(old) for new, old in names.items()}}
    return {**row, "steps": run.result["steps"], "seed": run.cfg.seed}


def _curve(run: Pretrained) -> Iterator[Row]:
    for record in read_records(run.workdir / "metrics.jsonl"):
        row = {key: record[key] for key in ("loss", "sparsity", "dev_loss", "learning_rate") if key in record}
        yield {**run.label, "step": record["step"], **row}


def _churn(run: Pretrained) -> Iterator[Row]:
    """What each prune brought back and took away, where the run recorded it."""
    for record in read_records(run.workdir / "prunes.jsonl"):
        if "regrown" in record:
            keys = ("step", "size", "kept", "regrown", "newly_pruned")
            yield {**run.label, **{key: record.get(key) for key in keys}}


def _of_models(study: Path, dense: Pretrained, runs: list[Pretrained]) -> dict[str, list[Row]]:
    """The tables that need the weights; one model is held at a time, beside the dense one and the states that all are
    compared with."""
    names = ("weights", "memory", "heads", "features", "distance", "movement", "movement_rank", "tokens")
    tables: dict[str, list[Row]] = {name: [] for name in names}
    start = dense.load()
    tables["magnitude"] = removed_magnitude(start.prunable, [i / 50 for i in range(51)])
    tables["heatmaps"] = list(_heatmaps(start.params, dense))
    baseline = next((run for run in runs if run.variant == "pruned" and run.target == 0), dense)
    reference = list(_reference(baseline.cfg, baseline.load().tree))
    vocabulary = _vocabulary(dense)
    cuts: dict[float, dict[str, np.ndarray]] = {}
    for run in [dense, *runs]:
        model = start if run is dense else run.load()
        _model_rows(tables, run, model, vocabulary)
        if run.cfg.model.num_hidden_layers == baseline.cfg.model.num_hidden_layers:  # else no layer has its like
            states = _states(run.cfg.model.model_dump_json())
            features = similarity((states(model.tree, batch), theirs, real) for batch, theirs, real in reference)
            tables["features"] += [
                {**run.label, "against": baseline.name, "layer": i, "cosine": c, "cka": k, "tokens": features.tokens}
                for i, (c, k) in enumerate(zip(features.cosine.tolist(), features.cka.tolist(), strict=True))
            ]
        as_deep = run.cfg.model.num_hidden_layers == dense.cfg.model.num_hidden_layers
        if run.variant == "pruned" and run.target > 0 and as_deep:
            cuts[run.target] = model.masks
    starts = {run.workdir.resolve(): run for run in runs}
    for label, init_from, tuned in _kept_weights(study):
        before = starts[init_from].load() if init_from in starts else start
        _tuned_rows(tables, label, before.prunable, tuned, cuts, dense.architecture.word_embeddings)
    return tables


def _model_rows(tables: dict[str, list[Row]], run: Pretrained, model: Weights, vocabulary: list[str]) -> None:
    record = run.architecture
    _, params, masks = model
    kind = kinds(params)
    for row in weights.moments(model.prunable, masks):
        path = row["path"]
        matrix = {"layer": layer_of(path), "kind": kind[path], "sparsity": 1 - float(masks[path].mean())}
        tables["weights"].append({**run.label, **row, **matrix})
    tables["memory"] += [{**run.label, **row} for row in weights.memory(params, record.parts, masks)]
    for group, values in head_sparsity(masks, record.scopes(run.cfg.model)["head"]).items():
        number = layer_of(f"{group}/")
        tables["heads"] += [{**run.label, "layer": number, "head": h, "sparsity": s} for h, s in enumerate(values)]
    if vocabulary and run.variant in ("dense", "pruned"):
        words = record.word_embeddings
        rows = weights.token_rows(params[words], vocabulary, masks.get(words), special=record.special_tokens)
        tables["tokens"] += [{**run.label, **row} for row in rows]


def _tuned_rows(
    tables: dict[str, list[Row]],
    label: Row,
    before: dict[str, np.ndarray],
    tuned: dict[str, np.ndarray],
    cuts: dict[float, dict[str, np.ndarray]],
    words: str,
) -> None:
    """Movement by fine-tuning (without the word embeddings, as in Table 2), and the masks that cutting the tuned
    weights gives, against two others. Over the matrices that both sides have: recovery may prune others than the dense
    run counts, and a task's head may have no pooler."""
    before = {path: leaf for path, leaf in before.items() if path in tuned}
    tuned = {path: tuned[path] for path in before}
    inside = [{p: side[p] for p in side if p != words} for side in (before, tuned)]
    kind = kinds(before)
    for row in movement(*inside):
        matrix = {"layer": layer_of(row.path), "kind": kind.get(row.path, row.path)}
        tables["movement"].append({**label, **row._asdict(), **matrix})
    shares = (by_rank(*inside), by_rank(*inside, by="after"))
    tables["movement_rank"] += [
        {**label, "bin": i, "before": a, "after": b} for i, (a, b) in enumerate(zip(*map(np.ndarray.tolist, shares)))
    ]
    for target, masks in sorted(cuts.items()):
        late = magnitude_masks(tuned, target)
        for other, reference in ((PRETRAINED, masks), (UNTUNED, magnitude_masks(before, target))):
            common = late.keys() & reference.keys()
            ours, theirs = ({path: side[path] for path in late if path in common} for side in (late, reference))
            rows = mask_distance(ours, theirs) if common else []
            tables["distance"] += [{**label, "target": target, "against": other, **row} for row in rows]


def _kept_weights(study: Path) -> Iterator[tuple[Row, Path, dict[str, np.ndarray]]]:
    """(label, where it started, weights) of the fine-tuned dense models whose weights the study kept."""
    root = study / "runs" / "finetune" / "dense"
    for path in sorted(root.rglob("result.json")):
        result, cfg = json.loads(path.read_text()), read_yaml(path.with_name("config.yaml"))
        if not (path.parent / "hf").is_dir() or not result["steps"]:
            continue
        switch = path.relative_to(root).parts[:-3]
        label = {"variant": switch[0] if switch else "dense", "epochs": cfg.get("epochs", FinetuneConfig().epochs)}
        label |= {key: result[key] for key in ("task", "learning_rate", "seed")}
        tuned = read_folder(path.parent / "hf", head=None).params
        yield label, Path(cfg["init_from"]).expanduser().resolve(), flat(tuned)


def _heatmaps(params: dict[str, np.ndarray], dense: Pretrained) -> Iterator[Row]:
    """Fig 7: a key matrix of the second layer (or the first); Fig 8: the word embeddings."""
    words = dense.architecture.word_embeddings
    keys = [path for path, kind in kinds(params).items() if kind == "key" and params[path].ndim == 2]
    for figure, path in (("key", keys[min(1, len(keys) - 1)]), ("words", words)):
        values = weights.heatmap(params[path].T if figure == "key" else params[path], KEEP_ROWS, KEEP_ROWS)
        for (i, j), value in np.ndenumerate(values):
            yield {"figure": figure, "path": path, "row": i, "column": j, "abs_mean": float(value)}


def _reference(cfg: PretrainConfig, params: Any) -> Iterator[tuple[Row, Any, np.ndarray]]:
    """(batch, hidden states, which tokens count) of held-out text, for every model to be compared with."""
    data = PretrainData(cfg.data.path, cfg.data, split="dev", batch_size=32, seed=0)
    tokens, states = 0, _states(cfg.model.model_dump_json())
    for batch in data.eval_batches():
        real = batch["attention_mask"] * batch["example_weights"][:, None].astype(np.int32)
        tokens += int(real.sum())
        yield batch, states(params, batch), real
        if tokens >= FEATURE_TOKENS:
            return


@cache
def _states(model: str) -> Any:
    """(params, batch) -> hidden states of a ModelConfig, given as JSON, which can be hashed."""
    cfg = ModelConfig.model_validate_json(model)
    apply = architecture_named(cfg.architecture).build(cfg, head="pretraining").apply
    run = jax.jit(lambda params, batch: apply(params, batch, hidden_states=True)["hidden_states"])
    names = ("input_ids", "token_type_ids", "attention_mask", "masked_positions")
    return lambda params, batch: jax.device_get(run(params, {name: batch[name] for name in names}))


def _vocabulary(dense: Pretrained) -> list[str]:
    folder = Path(dense.cfg.data.path).expanduser() / "tokenizer"
    return list(tokenizer.load(str(folder), special=dense.architecture.special_tokens).pieces)
