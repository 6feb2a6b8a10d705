"""Config files: strict, inherited, overridden, and every error in one line that helps."""

from fnmatch import fnmatch
from pathlib import Path
from typing import get_origin

import pytest

from jaxprune.config import COMMANDS, DataConfig, FinetuneConfig, PretrainConfig
from jaxprune.config.file_keys import file_keys, sections_in
from jaxprune.config.load import differences, overlaid, parse, read_config, to_yaml, validate
from jaxprune.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").rglob("*.yaml"))


def _write(path, text):
    path.write_text(text)
    return path


def test_base_is_overlaid_key_by_key(tmp_path):
    _write(tmp_path / "base.yaml", "steps: 7\nprune: {sparsity: 0.5, end: 5}\n")
    child = _write(tmp_path / "child.yaml", "base: base.yaml\nprune: {sparsity: 0.7}\n")
    cfg = parse(PretrainConfig, child, [], prog="x")
    assert (cfg.steps, cfg.prune.sparsity, cfg.prune.end) == (7, 0.7, 5)


def test_overrides_win_over_the_file(tmp_path):
    path = _write(tmp_path / "c.yaml", "steps: 7\n")
    cfg = parse(PretrainConfig, path, ["--prune.sparsity", "0.25", "--prune.end", "3", "--seed", "4"], prog="x")
    assert (cfg.steps, cfg.prune.sparsity, cfg.seed) == (7, 0.25, 4)


def test_what_was_said_is_told_from_a_default(tmp_path):
    """The same values, said or not, in a file, on the command line, and through the layers of a study."""
    path = _write(tmp_path / "c.yaml", "model: {num_hidden_layers: 12}\n")
    for argv, said in (([], set()), (["--model.hidden-size", "768"], {"hidden_size"}), (["--seed", "1"], set())):
        cfg = parse(PretrainConfig, path, argv, prog="x")
        assert cfg.model.model_fields_set == {"num_hidden_layers"} | said and cfg.model.hidden_size == 768
    assert overlaid(cfg, {"steps": 3}, "x").model.model_fields_set == {"num_hidden_layers"}
    with pytest.raises(UserError, match="prune.end: missing"):
        parse(PretrainConfig, path, ["--prune.sparsity", "0.7"], prog="x")
    once = parse(PretrainConfig, path, ["--prune.sparsity", "0.7", "--prune.end", "0"], prog="x")
    assert once.prune == parse(PretrainConfig, path, ["--prune.sparsity", "0.7", "--prune.end=0"], prog="x").prune
    assert validate(PretrainConfig, {"prune": {"sparsity": 0.7, "schedule": "one_shot"}}, "x").prune.end == 0


def _leaves(model, prefix=""):
    for name, field in model.model_fields.items():
        sections = sections_in(field.annotation)
        if not sections or get_origin(field.annotation) in (tuple, dict):
            yield f"{prefix}{name}"
        else:
            yield from _leaves(sections[0], f"{prefix}{name}.")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_key_once(command, capsys):
    """As a flag, or among what a file alone says."""
    with pytest.raises(SystemExit):
        parse(COMMANDS[command], None, ["--help"], prog="x")
    flags, _, rows = capsys.readouterr().out.partition("In the file alone")
    alone = dict(file_keys(COMMANDS[command], {}))
    assert bool(rows) == bool(alone) and all(f"\n  {key}\n" in rows for key in alone)
    for key in _leaves(COMMANDS[command]):
        hidden = any(fnmatch(key, pattern) for pattern in alone if pattern.endswith("*")) or key in alone
        assert hidden or f"--{key.replace('_', '-')}" in flags, key
    if command == "study":
        assert {"tasks.-.seeds", "tasks.-.own.*", "switches.NAME.condition", "conditions.pruned.before"} <= {*alone}


def test_resolved_yaml_reads_back_equal(tmp_path):
    cfg = PretrainConfig(steps=9, prune={"sparsity": 0.1, "end": 4})
    assert parse(PretrainConfig, _write(tmp_path / "c.yaml", to_yaml(cfg)), [], prog="x") == cfg
    assert differences(cfg, cfg) == []
    assert differences(cfg, cfg.model_copy(update={"steps": 8})) == ["steps: 9 -> 8"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", ["stepz", "unknown key", "did you mean steps?"]),
        ("prune: {sparsty: 0.5}", ["prune.sparsty", "did you mean sparsity?"]),
        ("prune: {sparsity: 1.5}", ["prune.sparsity", "1.5", "less than or equal to 1"]),
        ("prune: {sparsity: 0.7}", ["prune.end", "missing with sparsity = 0.7", "schedule = one_shot"]),
        ("prune: {sparsity: 70, end: 3}", ["prune.sparsity", "(got 70)", "0.7 for 70 %"]),
        ("prune: {sparsity: -0.1}", ["prune.sparsity", "-0.1"]),
        ("prune: {begin: 9, end: 3}", ["prune.begin = 9", "end = 3"]),
        ("prune: {sparsity: 0.2, initial: 0.5, end: 3}", ["prune.initial = 0.5", "sparsity = 0.2"]),
        ("steps: 5\nprune: {sparsity: 0.5, end: 9}", ["prune.end = 9", "steps = 5"]),
        ("batch_size: 10\ntrain: {accumulate: 3}", ["train.accumulate = 3", "batch_size = 10"]),
        ("model: {hidden_size: 100, num_attention_heads: 3}", ["model.num_attention_heads = 3", "hidden_size = 100"]),
        ("steps: 5\nsteps: 6", ["'steps' stands twice"]),
        ("a: &x 1\nb: *x", ["aliases"]),
        ("? [a]\n: 1", ["line 1", "a list or mapping is no key"]),
        ("a: " + "{a: " * 3000, ["nested too deeply"]),
        ("steps: " + "9" * 5000, ["4300 digits"]),
        ("- 1", ["expected keys and values"]),
        ("", ["expected keys and values"]),
        ("command: finetune", ["jaxprune finetune"]),
        ("seed: -1", ["seed", "-1"]),
        ("steps: true", ["steps: true and false are no numbers"]),
        ("prune: {sparsity: false}", ["prune.sparsity: true and false are no numbers"]),
        ("layers: [0, true]\ninit_from: x", ["layers: true and false are no numbers"]),
        ("prune: {sparsity: .nan}", ["prune.sparsity", "finite"]),
        ("prune: {sparsity: 0.5, end: 3, amounts: {pooler/kernel: 1.5}}", ["prune.amounts.pooler/kernel", "1.5"]),
        ("steps: 5\nprune: {end: 9, amounts: {pooler/kernel: 0.5}}", ["prune.end = 9", "steps = 5"]),
        ("prune: {mode: soft, criterion: random}", ["prune.mode = soft", "criterion = random"]),
        ("prune: {refresh: true}", ["prune.refresh = true", "mode = soft"]),
        ("data: {max_predictions: 0}", ["data.max_predictions", "0", "greater than or equal to 1"]),
        ("mesh: {member: 2}", ["mesh.member", "unknown key"]),
        ("population: 2", ["population", "unknown key"]),
        ("<ommand: pretrain", ["<ommand: unknown key", "did you mean command?"]),
        ("<task>: 1", ["<task>: unknown key"]),
        ("'': 1", ["'': unknown key"]),
        ("optimizer: {<b: 1}", ["optimizer.<b: unknown key"]),
        ("prune: {lift_steps: 10, every: 10}", ["prune.lift_steps = 10 leaves every = 10 no masked step"]),
        ("prune: {sparsity: 0.5, schedule: one_shot, lift_steps: 5}", ["prune.lift_steps = 5 needs an end"]),
        ("prune: {sparsity: 0.5, schedule: one_shot, initial: 0.3}", ["prune.initial = 0.3: schedule ="]),
        ("init_from: x\nteacher: {source: x, layers: [0]}", ["teacher.layers = (0,): nothing of them is compared"]),
        ("init_from: x\nteacher: {source: x, hidden: 1, relation_heads: 4}", ["teacher.relation_heads = 4: nothing"]),
        ("prune: {lift_steps: 1, method: quantile}", ["prune.lift_steps = 1 needs method = exact"]),
        ("prune: {straight_through: 0.1}", ["prune.straight_through = 0.1 needs mode = soft"]),
        ("steps: [", ["config"]),
        ("base: c.yaml", ["leads back"]),
        ("base: nowhere.yaml", ["nowhere.yaml", "no such file"]),
        ("x: !!python/object/apply:os.system [ls]", ["config"]),
    ],
)
def test_errors_name_key_value_and_remedy(tmp_path, text, words):
    path = _write(tmp_path / "c.yaml", text)
    with pytest.raises(UserError) as error:
        parse(PretrainConfig, path, [], prog="x")
    message = str(error.value)
    assert str(tmp_path) in message and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("prune", "prunes"),
    [
        ({}, False),
        ({"sparsity": 0.1}, True),
        ({"amounts": {"a": 0.0, "b": None}}, False),
        ({"amounts": {"a": 0.0, "b": 0.1}}, True),
        ({"sparsity": 0.1, "amounts": {"a": None}}, True),
    ],
)
def test_what_prunes_needs_fixed_masks(prune, prunes):
    """Fine-tuning: also where amounts alone prune something."""
    cfg = FinetuneConfig(prune=prune)
    assert not prune or cfg.prune.schedule == "one_shot"
    assert cfg.prune.prunes == prunes
    for masks in ("lifted", "none"):
        if not prunes:
            assert validate(FinetuneConfig, {"prune": prune, "masks": masks}, "c.yaml").masks == masks
            continue
        with pytest.raises(UserError, match=f"prune.sparsity = .* needs masks = fixed, not {masks}") as error:
            validate(FinetuneConfig, {"prune": prune, "masks": masks}, "c.yaml")
        assert ("prune.amounts = {'" in str(error.value)) == bool(cfg.prune.amounts)


def test_all_errors_at_once():
    with pytest.raises(UserError) as error:
        validate(PretrainConfig, {"stepz": 1, "seed": -1, "prune": {"sparsity": 2}}, "c.yaml")
    assert len(str(error.value).splitlines()) == 3


def test_not_utf8(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"steps: 5 # \xff")
    with pytest.raises(UserError, match="byte 11 is not UTF-8"):
        read_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_are_valid(path):
    content = read_config(path)
    config = validate(COMMANDS[content["command"]], content, str(path))
    assert path.read_text().startswith("#"), "say the command, hardware and time at the top"
    assert validate(type(config), content, str(path)) == config


def test_every_field_has_a_description():
    def check(model, prefix=""):
        for name, field in model.model_fields.items():
            assert field.description, prefix + name
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, f"{prefix}{name}.")

    for model in COMMANDS.values():
        check(model)


@pytest.mark.parametrize(("seq_len", "predictions"), [(128, 20), (512, 77), (64, 10), (40, 6), (8, 2), (1, 1)])
def test_predictions_follow_the_length(seq_len, predictions):
    assert DataConfig().predictions(seq_len) == predictions
    assert DataConfig(max_predictions=20).predictions(seq_len) == 20
    assert DataConfig(masked_prob=0).predictions(seq_len) == 1


def test_amounts_of_their_own_are_read_and_written(tmp_path):
    text = "steps: 5\nprune: {sparsity: 0.5, end: 4, amounts: {'.*/embedding': null, pooler/kernel: 0.25}}\n"
    cfg = parse(PretrainConfig, _write(tmp_path / "c.yaml", text), [], prog="x")
    assert cfg.prune.amounts == {".*/embedding": None, "pooler/kernel": 0.25}
    assert parse(PretrainConfig, _write(tmp_path / "d.yaml", to_yaml(cfg)), ["--seed", "0"], prog="x") == cfg


def test_a_size_alone_is_a_folders_business_and_else_is_checked():
    assert validate(PretrainConfig, {"init_from": "x", "model": {"hidden_size": 64}}, "x").model.hidden_size == 64
    with pytest.raises(UserError, match=r"model\.num_attention_heads = 12 does not divide model\.hidden_size = 64"):
        validate(PretrainConfig, {"model": {"hidden_size": 64}}, "x")
