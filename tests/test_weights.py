"""What is pruned when a run starts: one answer for a workdir, a Hugging Face directory and a fine-tuned model."""

import logging
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxprune.analysis.paths import flat
from jaxprune.cli import main
from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.experiments import finetune, pretrain
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.teacher import NO_LESSON
from jaxprune.experiments.walk import compile_run, first_state, walk
from jaxprune.experiments.weights import completed, read_weights
from jaxprune.models.bert import bert
from jaxprune.models.folder import read_config, read_folder, write_folder
from jaxprune.models.losses import LOSSES
from jaxprune.training.sharding import within
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow

WORDS = "embeddings/word_embeddings/embedding"
POSITIONS = "embeddings/position_embeddings/embedding"
QUERY = "encoder/layer_00/attention/query/kernel"


@pytest.fixture
def configured(tiny, tmp_path):
    """(command, changes) -> the config of a tiny run."""

    def config(command, **changes):
        write, kind = {
            "pretrain": (tiny.pretrain_yaml, PretrainConfig),
            "finetune": (tiny.finetune_yaml, FinetuneConfig),
        }[command]
        path = write(tmp_path / f"{command}.yaml", **changes)
        return validate(kind, read_yaml(path), str(path))

    return config


def command_of(cfg):
    return pretrain.PRETRAIN if isinstance(cfg, PretrainConfig) else finetune.tuning()


def opened(cfg):
    """A run of `cfg` before it is compiled."""
    command = command_of(cfg)
    return command.open(command.resolve(cfg, None), Shelf())


def masks_at_the_start(cfg):
    """{path: mask} of the state before the first step."""
    ready = compile_run(opened(cfg), Shelf())
    with within(ready.program.mesh):
        return flat(jax.device_get(first_state(ready.opened, ready.program).masks))


@pytest.fixture(scope="module")
def dense(tiny, pretrained):
    """A Hugging Face directory in which nothing is pruned."""
    model = read_config(pretrained / "hf")
    params = jax.device_get(jax.jit(bert(model, head="pretraining").init)(jax.random.key(7)))
    write_folder(tiny.root / "dense", model, params, head="pretraining", tokenizer=tiny.data / "tokenizer")
    return tiny.root / "dense"


@pytest.fixture(scope="module")
def positions(tiny, dense):
    """A directory whose position embeddings alone are pruned, which no architecture does by default."""
    out = tiny.root / "positions"
    assert main(["prune", str(dense), str(out), "--sparsity", "0.5", "--include", POSITIONS]) == 0
    return out


@pytest.fixture(scope="module")
def tuned(tiny, pretrained):
    """A fine-tuned run that kept its weights."""
    path = tiny.finetune_yaml(tiny.root / "kept.yaml", init_from=str(pretrained), keep_weights=True)
    cfg = validate(FinetuneConfig, read_yaml(path), str(path))
    finetune.finetune(cfg, tiny.root / "kept")
    return tiny.root / "kept" / "SST-2" / "lr0.001-seed0"


CHOICES = {
    "default": {},
    "without words": {"exclude": [WORDS]},
    "queries and positions": {"include": [".*/query/kernel", POSITIONS]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_workdir_its_directory_and_a_tuned_model_start_with_the_same_masks(pretrained, tuned, configured, choice):
    prune = CHOICES[choice]
    starts = {
        f"{command} {source.name}": masks_at_the_start(configured(command, init_from=str(source), prune=prune))
        for command in ("pretrain", "finetune")
        for source in (pretrained, pretrained / "hf", tuned, tuned / "hf")
    }
    stored = flat(read_folder(pretrained / "hf", head=None).masks)
    expected = {
        "default": stored,
        "without words": {path: mask for path, mask in stored.items() if path != WORDS},
        "queries and positions": {QUERY: stored[QUERY], POSITIONS: np.ones((32, 16), bool)},
    }[choice]
    assert not expected[QUERY].all()
    for name, masks in starts.items():
        assert {*masks} == {*expected}, name
        for path, mask in masks.items():
            np.testing.assert_array_equal(mask, expected[path], err_msg=f"{name} {path}")


def test_what_is_excluded_is_neither_pruned_nor_masked(pretrained, configured, tmp_path):
    before = flat(read_folder(pretrained / "hf", head=None).params)
    cfg = configured(
        "finetune", init_from=str(pretrained), keep_weights=True, prune={"sparsity": 0.9, "exclude": [WORDS]}
    )
    (record,) = finetune.finetune(cfg, tmp_path / "run")
    folder = read_folder(tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "hf", head=None)
    after, masks = flat(folder.params), flat(folder.masks)
    assert WORDS not in masks and len(masks) == 7
    assert record["sparsity"] == pytest.approx(0.9, abs=0.002)
    assert ((before[WORDS] == 0) & (after[WORDS] != 0)).sum() > 50  # zeros of words in the text train
    assert not ((before[WORDS] != 0) & (after[WORDS] == 0)).any()
    for path, mask in masks.items():
        assert not (mask & (before[path] == 0)).any()
        assert (after[path].view(np.uint32)[~mask] == 0).all() and (after[path][mask] != 0).all(), path
    (prune,) = read_records(tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "prunes.jsonl")
    assert {*prune["leaves"]} == {*masks}


HELD = {
    "its masks": (True, {}, True),
    "its masks, lifted": (True, {"masks": "none"}, False),
    "zeros of its include": (False, {"prune": {"include": [POSITIONS]}}, True),
    "zeros of its include, lifted": (False, {"prune": {"include": [POSITIONS]}, "masks": "none"}, False),
    "zeros of another include": (False, {}, False),
}


@pytest.mark.parametrize("case", HELD)
def test_a_directory_pruned_by_another_include(tiny, positions, configured, tmp_path, caplog, case):
    with_masks, changes, stays = HELD[case]
    source = shutil.copytree(positions, tmp_path / "source")
    if not with_masks:
        (source / "masks.safetensors").unlink()
    before = flat(read_folder(source, head=None).params)[POSITIONS]
    assert (before == 0).sum() == before.size // 2
    caplog.set_level(logging.INFO, "jaxprune")
    cfg = configured("finetune", init_from=str(source), keep_weights=True, **changes)
    (record,) = finetune.finetune(cfg, tmp_path / "run")
    hf = tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "hf"
    after = flat(read_folder(hf, head=None).params)[POSITIONS]
    lines = [line for line in caplog.messages if "brings no masks" in line]
    if stays:
        assert (after.view(np.uint32)[before == 0] == 0).all() and record["sparsity"] > 0
        assert len(load_file(hf / "masks.safetensors")) == (1 if "prune" in changes else 9)
    else:
        assert (after[:8][before[:8] == 0] != 0).all() and record["sparsity"] == 0
    if stays and not with_masks:
        (line,) = lines
        words = f"{source} brings no masks: 256 of 512 prunable weights are exactly 0 and count as pruned"
        assert line == f"{words} (masks: none lifts)"
    else:
        assert not lines
    masks = masks_at_the_start(configured("pretrain", init_from=str(source), **changes))
    assert (POSITIONS in masks and not masks[POSITIONS].all()) == stays
    if stays:
        np.testing.assert_array_equal(masks[POSITIONS], before != 0)


def test_a_workdir_pruned_by_another_include_does_not_regrow(tiny, dense, configured, tmp_path):
    """Unless fine-tuning says what it may prune, it keeps to what pre-training pruned."""
    prune = {"sparsity": 0.5, "begin": 0, "end": 0, "include": [POSITIONS, ".*/kernel"], "exclude": ["(mlm|nsp)/.*"]}
    run = tmp_path / "pretrained"
    pretrain.pretrain(configured("pretrain", init_from=str(dense), steps=1, prune=prune), run)
    stored = flat(read_folder(run / "hf", head=None).masks)
    masks = masks_at_the_start(configured("finetune", init_from=str(run)))
    assert {*masks} == {*stored, WORDS} and masks[WORDS].all() and not stored[POSITIONS].all()
    for path, mask in stored.items():
        np.testing.assert_array_equal(masks[path], mask, err_msg=path)


ZERO_ROW = {
    "masks beside it": (True, "fixed", True),
    "lifted": (False, "none", True),
    "counted": (False, "fixed", False),
}


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("case", ZERO_ROW)
def test_the_row_of_an_added_token(tiny, dense, configured, tmp_path, command, case):
    """All zero at the start, it trains where masks say that nothing is pruned, and with `masks: none`."""
    with_masks, masks, trains = ZERO_ROW[case]
    token = (tiny.data / "tokenizer" / "vocab.txt").read_text().splitlines().index("[SEP]")  # in every text
    folder = read_folder(dense, head=None)
    params = jax.tree.map(np.copy, folder.params)
    params["embeddings"]["word_embeddings"]["embedding"][token] = 0
    source = tmp_path / "source"
    nothing = {"embeddings": {"word_embeddings": {"embedding": np.ones((160, 16), bool)}}} if with_masks else None
    write_folder(source, folder.model, params, head="pretraining", masks=nothing, tokenizer=dense)
    changes = {"init_from": str(source), "masks": masks}
    if command == "pretrain":
        changes |= {"steps": 2, "prune": {"sparsity": 0, "begin": 0, "end": 0}}
        pretrain.pretrain(configured(command, **changes), tmp_path / "run")
        hf = tmp_path / "run" / "hf"
    else:
        finetune.finetune(configured(command, keep_weights=True, **changes), tmp_path / "run")
        hf = tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "hf"
    row = load_file(hf / "model.safetensors")["bert.embeddings.word_embeddings.weight"][token]
    assert (row != 0).all() if trains else (row.view(np.uint32) == 0).all()


@pytest.fixture(scope="module")
def soft(tiny):
    """The workdir of a run with soft masks: what they hide has kept its value."""
    prune = {"mode": "soft", "begin": 0, "end": 2}
    path = tiny.pretrain_yaml(tiny.root / "soft_start.yaml", steps=2, prune=prune)
    done = tiny.run("pretrain", path, "--workdir", tiny.root / "soft_start")
    assert done.code == 0, done.err
    return tiny.root / "soft_start"


@pytest.mark.parametrize(("command", "masks"), [("pretrain", "fixed"), ("finetune", "fixed"), ("finetune", "lifted")])
def test_the_first_step_from_a_soft_run_sees_masked_weights(soft, configured, tmp_path, command, masks):
    """Its loss is that of the masked model; the weights themselves are dense."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    changes = {"model": no_dropout, "steps": 1} if command == "pretrain" else {"dropout": 0.0}
    cfg = configured(command, init_from=str(soft), masks=masks, **changes, prune={"sparsity": 0, "begin": 0, "end": 0})
    run = opened(cfg)
    weights, model = read_weights(str(soft)), run.blueprint.build()
    kept = flat(weights.masks)
    dense = completed(weights, model.init, jax.random.key(0))
    masked = jax.tree_util.tree_map_with_path(lambda path, w: w * kept.get("/".join(p.key for p in path), True), dense)
    batch, losses = next(run.data.batches(NO_LESSON)), {}
    for name, params in (("masked", masked), ("dense", dense)):
        terms, _ = jax.jit(LOSSES[run.blueprint.head](model.apply))(params, (), batch)
        losses[name] = float(sum(total / count for total, count in terms.values()))
    assert abs(losses["masked"] - losses["dense"]) > 1e-4
    walk(command_of(cfg), cfg, tmp_path / "run")
    first = read_records(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["step"] == 1 and first["loss"] == pytest.approx(losses["masked"], abs=2e-6)
    assert first["sparsity"] == pytest.approx(0.7 if masks == "fixed" else 0, abs=0.002)


@pytest.mark.parametrize("command", ["pretrain", "pretrain from weights", "finetune"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_nothing_left_to_prune_is_one_line(tiny, dense, tmp_path, capsys, command, dry):
    prune = {"exclude": [".*"], "sparsity": 0.5}
    if command == "finetune":
        path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(dense), prune=prune)
    else:
        start = {"init_from": str(dense)} if command != "pretrain" else {}
        path = tiny.pretrain_yaml(tmp_path / "c.yaml", prune=prune, **start)
    assert main([command.split()[0], str(path), "--workdir", str(tmp_path / "run"), *dry]) == 2
    error = capsys.readouterr().err
    assert "prune.exclude = ['.*'] leaves nothing to prune" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- one shot -------------------------------------------------------------------------------------------------------


def test_prune_takes_the_model_of_a_workdir(tiny, pretrained, tuned, tmp_path):
    """Of pre-training its hf/, of a grid of one task its best run's."""
    sources = {pretrained: pretrained / "hf", tuned: tuned / "hf", tuned.parents[1]: tuned.parents[1] / "best" / "hf"}
    for number, (workdir, folder) in enumerate(sources.items()):
        outs = [tmp_path / f"{number}{name}" for name in "ab"]
        for source, out in zip((workdir, folder), outs, strict=True):
            assert main(["prune", str(source), str(out), "--sparsity", "0.9"]) == 0
        files, expected = ({path.name: path.read_bytes() for path in out.iterdir()} for out in outs)
        assert files == expected and files.keys() >= {path.name for path in folder.iterdir()}


def test_prune_of_a_workdir_without_a_model_is_one_line(pretrained, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    shutil.copy(pretrained / "config.yaml", tmp_path / "begun")
    assert main(["prune", str(tmp_path / "begun"), str(tmp_path / "out"), "--sparsity", "0.9"]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'begun'}: has no hf/, which a finished run has; run its command again" in err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_head_that_pretraining_does_not_train_is_left_behind_in_one_line(dense, configured, tmp_path, caplog):
    source = shutil.copytree(dense, tmp_path / "source")
    extra = {f"qa_outputs.{name}": np.ones(2, np.float32) for name in ("weight", "bias")}
    extra |= {"classifier.weight": np.ones((3, 16), np.float32), "classifier.bias": np.ones(3, np.float32)}
    save_file(load_file(source / "model.safetensors") | extra, source / "model.safetensors", {"format": "pt"})
    caplog.set_level(logging.INFO, "jaxprune")
    masks_at_the_start(configured("pretrain", init_from=str(source)))
    words = f"{source}: left behind: classifier, qa_outputs; this run trains another head"
    assert [line for line in caplog.messages if "left behind" in line] == [words]
    caplog.clear()
    masks_at_the_start(configured("pretrain", init_from=str(dense)))
    masks_at_the_start(configured("finetune", init_from=str(dense)))
    assert not any("left behind" in line for line in caplog.messages)
