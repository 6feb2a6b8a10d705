"""From outside the package: a task, criterion, structure, scope, schedule and architecture, each one registry row."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from safetensors.numpy import load_file
from workflow import write_yaml

from jaxprune.analysis.paths import flat
from jaxprune.cli import main
from jaxprune.config import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data.tasks import TASKS, Task
from jaxprune.experiments.names import offers
from jaxprune.models import ARCHITECTURES
from jaxprune.models.architecture import Architecture
from jaxprune.models.folder import read_folder
from jaxprune.models.model import Model
from jaxprune.models.shape import shape_from_hf, shape_to_hf
from jaxprune.pruning.criteria import CRITERIA, elementwise
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.schedules import SCHEDULES
from jaxprune.pruning.structures import STRUCTURES
from jaxprune.training.workdir import read_records

SPECIAL = SpecialTokens(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
KEYS = {field: field for field in ModelConfig.model_fields if field not in ("architecture", "dtype", "sublayer_relu")}


def bag(cfg, *, head, num_labels=0, pooling="mean"):
    """Words in a bag: each vector, and the mean of all through one matrix."""
    classes = {"pretraining": 0, "classification": num_labels, "regression": 1}[head]

    def init(key):
        def draw(number, *shape):
            return cfg.initializer_range * jax.random.normal(jax.random.fold_in(key, number), shape)

        D = cfg.hidden_size
        params = {
            "embeddings": {"words": {"embedding": draw(0, cfg.vocab_size, D)}},
            "encoder": {f"layer_{i:02d}": {"mix": {"kernel": draw(1 + i, D, D)}} for i in range(cfg.num_hidden_layers)},
        }
        if classes:
            return params | {"classifier": {"kernel": draw(99, D, classes), "bias": jnp.zeros(classes)}}
        return params | {"mlm": {"bias": jnp.zeros(cfg.vocab_size)}}

    def apply(params, batch, *, key=None, hidden_states=False):
        params, batch = jax.tree.map(jnp.asarray, (params, dict(batch)))
        words = params["embeddings"]["words"]["embedding"]
        row = batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]
        bags = (row[:, :, None] == row[:, None, :]).astype(jnp.float32)  # rows may hold several examples
        states = [words[batch["input_ids"]]]
        for layer in params["encoder"].values():
            mean = bags @ states[-1] / bags.sum(2, keepdims=True)
            states.append(states[-1] + jnp.tanh(mean @ layer["mix"]["kernel"]))
        out = {"hidden_states": tuple(states)} if hidden_states else {}
        if classes:
            first = jnp.take_along_axis(states[-1], batch["starts"][..., None], 1)
            logits = first @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, None]
            return out | {"logits": logits if classes > 1 else logits[..., 0]}
        x = states[-1]
        if "masked_positions" in batch:
            x = jnp.take_along_axis(x, batch["masked_positions"][..., None], 1)
        return out | {"mlm_logits": x @ words.T + params["mlm"]["bias"][None, None]}

    return Model(init, apply)


BAG = Architecture(
    name="bag",
    build=bag,
    config_from_hf=partial(shape_from_hf, architecture="bag", keys=KEYS),
    config_to_hf=partial(shape_to_hf, keys=KEYS),
    classes={
        "pretraining": "BagForMaskedLM",
        "classification": "BagForSequenceClassification",
        "regression": "BagForSequenceClassification",
    },
    tensors=(
        (r"embeddings/words", r"bag.words"),
        (r"encoder/layer_0*(\d+)/mix", r"bag.layer.\1.mix"),
        (r"mlm", r"lm_head"),
        (r"classifier", r"classifier"),
    ),
    prefix="bag.",
    tied=(),
    optional=(r"mlm/.+", r"classifier/.+"),
    prunable=(r"embeddings/words/embedding", r"encoder/layer_\d+/mix/kernel"),
    scopes=lambda cfg: {"layer": SCOPES["matrix"], "head": lambda path, shape: (path, 1, cfg.num_attention_heads)},
    special_tokens=SPECIAL,
    max_tokens=lambda cfg: cfg.max_position_embeddings,
    word_embeddings="embeddings/words/embedding",
    parts=(("words", r"embeddings/.+"), ("mixing", r"encoder/.+"), ("other", r".+")),
    next_sentence=False,
    train_flops=lambda cfg, *, seq_len, predictions: 6.0 * predictions * cfg.hidden_size * cfg.vocab_size,
)


def rows(path, shape):
    """The structure: a row lives or dies as a whole."""
    return (*(1,) * (len(shape) - 1), shape[-1])


def first_part(path, shape):
    """The scope: all leaves under the first part of their paths are one group."""
    return path.split("/")[0], None, 1


def root(final, *, begin, end, initial=0.0):
    """The schedule: as the square root of the time."""

    def schedule(step):
        return final if step >= end else initial + (final - initial) * math.sqrt((step - begin) / (end - begin))

    return schedule


ROWS = [
    (CRITERIA, "largest", elementwise(lambda w: w)),
    (STRUCTURES, "row", (r"row", lambda: rows)),
    (SCOPES, "first part", first_part),
    (SCHEDULES, "root", root),
    (ARCHITECTURES, "bag", BAG),
    (TASKS, "Smile", Task("Smile", "", ("text",), "smiles", ("no", "yes"), ("accuracy",), coded=False)),
]


@pytest.fixture
def registered(monkeypatch):
    for registry, name, row in ROWS:
        monkeypatch.setitem(registry, name, row)


NAMES = {
    "criterion": "largest",
    "structure": "row",
    "scope": "first part",
    "schedule": "root",
    "architecture": "bag",
    "tasks": "Smile",
}


def test_help_and_errors_list_every_row(registered, tiny, tmp_path, capsys):
    for key, name in NAMES.items():
        assert name in offers()[key]
    assert main(["prune", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for key in ("criterion", "structure", "scope"):
        assert NAMES[key] in out
    for key in ("prune.criterion", "prune.structure", "prune.scope", "prune.schedule", "model.architecture"):
        path = tiny.pretrain_yaml(tmp_path / "c.yaml")
        argv = ["pretrain", str(path), "--workdir", str(tmp_path / "run"), f"--{key}", "nonesuch"]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert "nonesuch" in error and NAMES[key.split(".")[1]] in error and error.count("\n") == 1, error
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bag", **SHAPE}))
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "smile"]) + "\n")
    tokens = {f"{role}_token": token for role, token in SPECIAL._asdict().items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | tokens))
    path = tiny.finetune_yaml(tmp_path / "f.yaml", tasks=["Smil"], init_from=str(tmp_path))
    assert main(["finetune", str(path), "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "'Smil'" in error and "did you mean 'Smile'?" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


SHAPE = {
    "vocab_size": 200,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_config_uses_every_row(registered, tiny, tmp_path, capsys):
    """Prepare, pre-train while pruning, look at it, and fine-tune; what is kept is what the rows say."""
    data, run = tmp_path / "data", tmp_path / "run"
    path = tiny.prepare_yaml(tmp_path / "p.yaml", architecture="bag", next_sentence=False)
    assert main(["prepare", str(path), "--workdir", str(data)]) == 0
    assert (data / "tokenizer" / "vocab.txt").read_text().splitlines()[:5] == [*SPECIAL]

    still = {"learning_rate": 1e-30, "weight_decay": 0.0}  # so that what is pruned can be read off the first weights
    prune = {"sparsity": 0.5, "begin": 0, "end": 4, "every": 2}
    prune |= {key: NAMES[key] for key in ("criterion", "structure", "scope", "schedule")}
    config = {"command": "pretrain", "steps": 5, "batch_size": 8, "seed": 3, "data": {"path": str(data)}}
    config |= {"model": {"architecture": "bag", **SHAPE}, "prune": prune, "optimizer": still}
    argv = ["pretrain", str(write_yaml(tmp_path / "c.yaml", config)), "--workdir", str(run)]
    assert main([*argv, "--dry-run"]) == 0
    assert main(argv) == 0
    targets = [(record["step"], record["target"]) for record in read_records(run / "prunes.jsonl")]
    assert targets == [(0, 0.0), (2, pytest.approx(0.5 * math.sqrt(0.5))), (4, 0.5)]

    cfg = ModelConfig(architecture="bag", **SHAPE)
    first = flat(jax.device_get(jax.jit(bag(cfg, head="pretraining").init)(jax.random.key(3))))
    masks = flat(read_folder(run / "hf", head=None).masks)
    assert {*masks} == {path for path in first if not path.startswith("mlm")}
    for part in ("embeddings", "encoder"):
        paths = [path for path in masks if path.startswith(part)]
        means = np.concatenate([first[path].mean(1) for path in paths])
        kept = np.concatenate([masks[path].all(1) for path in paths])
        assert all((masks[path].all(1) == masks[path].any(1)).all() for path in paths)
        assert kept.sum() == kept.size // 2 and means[kept].min() > means[~kept].max()
    assert load_file(run / "hf" / "model.safetensors").keys() == {
        *("bag.words.weight", "bag.layer.0.mix.weight", "bag.layer.1.mix.weight", "lm_head.bias")
    }
    capsys.readouterr()
    assert main(["inspect", str(run / "hf"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sparsity"] == 0.5 and [part["part"] for part in report["memory"]] == ["words", "mixing", "other"]

    glue = tmp_path / "glue"
    for split, count in (("train", 24), ("dev", 9)):
        lines = [f"{'with a smile' if i % 3 else 'at night'}\t{'yes' if i % 3 else 'no'}" for i in range(count)]
        (glue / "Smile").mkdir(parents=True, exist_ok=True)
        (glue / "Smile" / f"{split}.tsv").write_text("\n".join(["text\tsmiles", *lines]) + "\n")
    path = tiny.finetune_yaml(
        tmp_path / "f.yaml", tasks=["Smile"], glue=str(glue), init_from=str(run), epochs=2, keep_weights=True
    )
    assert main(["finetune", str(path), "--workdir", str(tmp_path / "tuned")]) == 0
    (row,) = pandas.read_csv(tmp_path / "tuned" / "results.csv").to_dict("records")
    assert (row["task"], row["metric"], row["train_examples"], row["sparsity"]) == ("Smile", "accuracy", 24, 0.5)
    assert row["majority_accuracy"] == pytest.approx(2 / 3) and 0 <= row["score"] <= 1
    hf = tmp_path / "tuned" / "Smile" / "lr0.001-seed0" / "hf"
    assert json.loads((hf / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    tuned = flat(read_folder(hf, head=None).masks)
    assert all((tuned[path] == masks[path]).all() for path in masks)
