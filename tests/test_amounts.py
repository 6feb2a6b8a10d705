"""Amounts per path: a sparsity of their own for some matrices, in a config and on the command line."""

import json
from fractions import Fraction

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxprune.cli import main
from jaxprune.config import PruneConfig, StudyConfig
from jaxprune.errors import UserError
from jaxprune.experiments.matrix import matrix
from jaxprune.experiments.pruning_plan import plan_of
from jaxprune.pruning import CRITERIA, cubic, pruner
from jaxprune.training.workdir import read_records

WORDS = "embeddings/word_embeddings/embedding"
QUERY, KEY = (f"encoder/layer_00/attention/{name}/kernel" for name in ("query", "key"))
TENSORS = {
    WORDS: "bert.embeddings.word_embeddings.weight",
    QUERY: "bert.encoder.layer.0.attention.self.query.weight",
    KEY: "bert.encoder.layer.0.attention.self.key.weight",
}


def test_every_amount_has_its_own_plan():
    amounts = {".*/query/kernel": 0.9, "embeddings/.*": None}
    prune = PruneConfig(sparsity=0.5, initial=0.2, begin=2, end=9, every=3, amounts=amounts)
    plan = plan_of(prune, 12, "steps")
    assert [*plan] == [2, 5, 8, 9]
    for step, target in plan.items():
        assert target == {
            "": cubic(0.5, begin=2, end=9, initial=0.2)(step),
            ".*/query/kernel": cubic(0.9, begin=2, end=9, initial=0.2)(step),
            "embeddings/.*": None,
        }
    lower = plan_of(prune.model_copy(update={"amounts": {".*/query/kernel": 0.1}}), 12, "steps")
    assert {target[".*/query/kernel"] for target in lower.values()} == {0.1}
    assert plan_of(PruneConfig(amounts={"x": 0.0, "y": None}), 12, "steps") == {}
    with pytest.raises(UserError, match="prune.end = 9 lies after steps = 8"):
        plan_of(PruneConfig(end=9, amounts={"x": 0.3}), 8, "steps")


def kept_of(sparsity, shapes, names):
    """What stays of some of the matrices together."""
    return kept(sparsity, sum(int(np.prod(shapes[name])) for name in names))


def rigl(shapes, sparsity):
    """Densities by Erdos-Renyi-Kernel as google-research/rigl finds them (sparse_utils.py): dense layers one by one."""
    shapes, dense = [np.array(shape) for shape in shapes], set()
    while True:
        raw = [shape.sum() / shape.prod() for shape in shapes]
        rest = [i for i in range(len(shapes)) if i not in dense]
        given = (1 - sparsity) * sum(shape.prod() for shape in shapes) - sum(shapes[i].prod() for i in dense)
        factor = given / sum(raw[i] * shapes[i].prod() for i in rest)
        over = {i for i in rest if factor * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else factor * raw[i] for i in range(len(shapes))]
        dense.add(max(over, key=lambda i: raw[i]))


def test_erk_gives_the_densities_of_its_authors_and_exact_totals():
    """Per amount apart; never more of a matrix at a higher sparsity."""
    shapes = {"a": (768, 768), "b": (768, 3072), "c": (3072, 768), "d": (30522, 768), "e": (8, 16), "f": (13, 7)}
    tree = {name: jax.ShapeDtypeStruct(shape, bool) for name, shape in shapes.items()}
    sizes, before = {name: np.prod(shape) for name, shape in shapes.items()}, dict.fromkeys(shapes, 10**9)
    for percent in range(0, 101, 4):
        amount = pruner(distribution="erk").amounts(tree, percent / 100)
        left = dict(zip(shapes, (int(low) for _, low in amount.kept), strict=True))
        assert sum(left.values()) == kept_of(str(percent / 100), shapes, shapes)
        assert all(left[name] <= before[name] for name in shapes)
        if percent < 100:
            for name, density in zip(shapes, rigl(shapes.values(), percent / 100), strict=True):
                # what rounding adds to the others, the largest matrix gives, at most half a weight for each
                assert left[name] == pytest.approx(density * sizes[name], abs=len(shapes) / 2), (percent, name)
        before = left
    apart = pruner(distribution="erk").amounts(tree, {"": 0.9, "[ab]": 0.5, "f": None})
    counts = [int(low) for _, low in apart.kept]
    assert (sum(counts[:2]), sum(counts[2:])) == (kept_of("0.5", shapes, "ab"), kept_of("0.9", shapes, "cde"))
    assert counts[0] / sizes["a"] > 1.5 * counts[1] / sizes["b"]
    with pytest.raises(UserError, match="distribution: .*give a sparsity that is a number"):
        pruner(distribution="erk").amounts(tree, np.float32(0.5))
    with pytest.raises(UserError, match="distribution: n of m consecutive weights are as many everywhere"):
        pruner(distribution="erk", structure="2:4").amounts({"w": np.zeros((8, 8), bool)}, 0.5)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_no_prune_by_gradients_before_the_first_step(criterion):
    """All scores are 0 there, so chance would choose; a prune to 0 chooses nothing."""
    for prune in (
        PruneConfig(criterion=criterion, sparsity=0.5, schedule="one_shot"),
        PruneConfig(criterion=criterion, sparsity=0.5, initial=0.1, end=4),
        PruneConfig(criterion=criterion, amounts={"x": 0.5, "y": None}, end=0),
    ):
        if CRITERIA[criterion].observe is None:
            assert min(plan_of(prune, 9, "steps")) == 0
            continue
        with pytest.raises(UserError) as error:
            plan_of(prune, 9, "steps")
        assert str(error.value) == (
            f"prune.criterion = {criterion}: its scores come from training steps, and prune.begin = 0 is before the "
            "first; set it to 1 or more, or use one of magnitude, random"
        )
        assert min(plan_of(prune.model_copy(update={"begin": 1, "end": 4}), 9, "steps")) == 1
    assert plan_of(PruneConfig(criterion=criterion, sparsity=0.5, end=9, every=5), 9, "steps")[0] == 0


def test_random_runs_with_amounts_are_runs_of_their_own(tmp_path):
    """At sparsity 0 a random run is the pruned one only if nothing else is pruned."""
    for amounts, runs in (({}, 1), ({"pooler/kernel": None}, 1), ({"pooler/kernel": 0.5}, 2)):
        study = StudyConfig(
            data="data",
            dense="dense",
            tasks=({"name": "SST-2"},),
            recover={"prune": {"end": 4, "amounts": amounts}},
            conditions={"pruned": {"sparsities": (0,)}, "random": {"sparsities": (0,)}},
        )
        assert sum(job.pretrains for job in matrix(study, tmp_path)) == runs


def kept(sparsity: str, size: int) -> int:
    return round((1 - Fraction(sparsity)) * size)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_amounts_of_a_pretraining_config(tiny, tmp_path, scope):
    """Exact counts of each; the rest is one group, or one per matrix, by the scope; what is None stays as it is."""
    amounts = {".*/attention/(query|key)/kernel": 0.85, WORDS: None}
    prune = {"sparsity": 0.4, "scope": scope, "amounts": amounts}
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", prune=prune)
    assert main(["pretrain", str(path), "--workdir", str(tmp_path / "run")]) == 0
    records = read_records(tmp_path / "run" / "prunes.jsonl")
    assert [record["step"] for record in records] == [4, 6, 8]
    assert records[-1]["target"] == {"": 0.4, ".*/attention/(query|key)/kernel": 0.85, WORDS: None}
    leaves = records[-1]["leaves"]
    assert len(leaves) == 8 and leaves[WORDS] == 0
    tensors = load_file(tmp_path / "run" / "hf" / "model.safetensors")
    own = [np.count_nonzero(tensors[TENSORS[name]]) for name in (QUERY, KEY)]
    if scope == "matrix":
        assert own == [kept("0.85", 256)] * 2
        assert {round((1 - leaves[name]) * 256) for name in leaves if "/value/" in name} == {kept("0.4", 256)}
    else:
        assert sum(own) == kept("0.85", 512)
    sizes = {name: 512 if "attention" not in name and "pooler" not in name else 256 for name in leaves}
    rest = [name for name in leaves if name not in (WORDS, QUERY, KEY)]
    groups = [sizes[name] for name in rest] if scope == "matrix" else [sum(sizes[name] for name in rest)]
    left = sum(kept("0.4", size) for size in groups)
    assert sum(round((1 - leaves[name]) * sizes[name]) for name in rest) == left
    total = sum(groups) + 512 + 160 * 16
    pruned = total - 160 * 16 - sum(own) - left
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sparsity"] == pytest.approx(pruned / total, abs=1e-12)
    assert records[-1]["sparsity"] == pytest.approx(pruned / total, abs=1e-12)


@pytest.mark.slow
def test_amounts_of_a_fine_tuning_config(tiny, pretrained, tmp_path):
    prune = {"sparsity": 0.8, "amounts": {QUERY: 0.95, WORDS: None}}
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), keep_weights=True, prune=prune)
    assert main(["finetune", str(path), "--workdir", str(tmp_path / "run")]) == 0
    tensors = load_file(tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "hf" / "model.safetensors")
    before = load_file(pretrained / "hf" / "model.safetensors")
    counts = {name: np.count_nonzero(tensors[TENSORS[name]]) for name in TENSORS}
    assert counts == {
        QUERY: kept("0.95", 256),
        KEY: kept("0.8", 256),
        WORDS: np.count_nonzero(before[TENSORS[WORDS]]),
    }


@pytest.mark.slow
def test_amounts_on_the_command_line(pretrained, tmp_path, capsys):
    argv = ["prune", str(pretrained / "hf"), str(tmp_path / "out"), "--sparsity", "0.75", "--masks", "none"]
    argv += ["--amount", ".*/query/kernel", "0.95", "--amount", "embeddings/.*", "none"]
    assert main(argv) == 0
    before, after = (load_file(place / "model.safetensors") for place in (pretrained / "hf", tmp_path / "out"))
    assert np.count_nonzero(after[TENSORS[QUERY]]) == kept("0.95", 256)
    assert np.count_nonzero(after[TENSORS[KEY]]) == kept("0.75", 256)
    assert after[TENSORS[WORDS]].tobytes() == before[TENSORS[WORDS]].tobytes()
    assert "8 matrices" in capsys.readouterr().out


REFUSED = {
    "matches nothing": ({"encodr/.*": 0.5}, [": 'encodr/.*' matches no parameter path", "the nearest is"]),
    "twice": ({".*/query/kernel": 0.5, "encoder/.*": 0.6}, [": both", QUERY, "one amount"]),
    "no sparsity": ({"encoder/.*": 1.5}, ["", "encoder/.*", "1.5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "finetune", "prune"])
@pytest.mark.parametrize("case", REFUSED)
def test_amounts_that_do_not_fit_are_refused_before_anything_is_written(
    tiny, pretrained, tmp_path, capsys, command, case
):
    amounts, words = REFUSED[case]
    out = tmp_path / "out"
    if command == "prune":
        argv = [str(pretrained / "hf"), str(out), "--sparsity", "0.5"]
        for regex, amount in amounts.items():
            argv += ["--amount", regex, str(amount)]
    else:
        prune = {"sparsity": 0.7, "amounts": amounts}
        if command == "pretrain":
            path = tiny.pretrain_yaml(tmp_path / "c.yaml", prune=prune)
        else:
            path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), prune=prune)
        argv = [str(path), "--workdir", str(out)]
    assert main([command, *argv]) == 2
    error = capsys.readouterr().err
    key = "--amount" if command == "prune" else "prune.amounts"
    words = [key + words[0], *words[1:]]
    assert all(word in error for word in words) and error.count("\n") == 1, error
    assert not out.exists()
