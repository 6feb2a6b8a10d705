"""Tasks of one's own: every format reads as the same examples, every bad input is one line, weights and splits hold."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.load import changes, parse, to_yaml, validate
from jaxprune.config.task import OwnTaskConfig, task_name, with_paths
from jaxprune.data.examples import Examples, example_weights, subset
from jaxprune.data.metrics import METRICS
from jaxprune.data.own_task import read_task, read_texts
from jaxprune.data.tasks import TASKS, Task
from jaxprune.errors import UserError

TEXTS = [
    "the app crashes",
    "a comma, here",
    'she said "no"',
    "two\nlines",
    "NA",
    "Zürich \u2028 café",
    " spaced ",
    "null",
]
TOPICS = ["bug", "billing", "other", "bug", "billing", "other", "bug", "billing"]
TAGS = [["a"], [], ["b", "a"], ["c"], ["a", "c"], ["b"], [], ["a", "b", "c"]]
STARS = [0.0, 1.5, 5.0, 2.0, 3.25, 4.0, 1e-3, 2.5]
ROWS = [
    {"id": i, "body": text, "topic": topic, "stars": stars, "tags": tags}
    for i, (text, topic, stars, tags) in enumerate(zip(TEXTS, TOPICS, STARS, TAGS))
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` in the format that the suffix says; lists in CSV and TSV are joined by `;`."""
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        flat = [{k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        text = pandas.DataFrame(flat).to_csv(index=False, sep="\t" if path.suffix == ".tsv" else ",")
        path.write_text(text, encoding="utf-8", newline="")
    else:
        import datasets

        topics = sorted({row["topic"] for row in rows})
        data = datasets.Dataset.from_list([row | {"topic": topics.index(row["topic"])} for row in rows])
        data = data.cast_column("topic", datasets.ClassLabel(names=topics))
        datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(str(path))
    return path


def own(**keys: Any) -> OwnTaskConfig:
    base = {"name": "tickets", "text": "body", "label": "topic", "dev_fraction": 0.0 if keys.get("dev") else 0.4}
    return validate(OwnTaskConfig, base | keys, "c.yaml")


def read(**keys: Any) -> tuple[Examples, Examples]:
    return read_task(own(**keys), "nowhere")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tickets")
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet", ""):
        write(folder / f"tickets{suffix}", ROWS)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ""])
def test_every_format_gives_the_same_examples(files, suffix):
    path = str(files / f"tickets{suffix}")
    source = (
        {"dataset": "", "train": path, "dev": path} if suffix else {"dataset": path, "train": "train", "dev": "dev"}
    )
    train, dev = read(**source)
    assert train.task.labels == ("billing", "bug", "other") and train.task.kind == "single_label"
    assert (train.task.metric, train.task.head, train.task.num_labels) == ("accuracy", "classification", 3)
    for part in (train, dev):
        assert list(part.first) == TEXTS and part.second is None and part.labels.dtype == np.int32
        assert [part.task.labels[i] for i in part.labels] == TOPICS
    scores, _ = read(**source, label="stars", kind="regression")
    assert scores.task.regression and scores.task.labels == () and scores.labels.dtype == np.float32
    np.testing.assert_array_equal(scores.labels, np.array(STARS, np.float32))
    separator = ";" if suffix in (".csv", ".tsv") else ""
    several, _ = read(**source, label="tags", kind="multi_label", separator=separator)
    assert several.task.labels == ("a", "b", "c") and several.labels.dtype == np.float32
    assert [[several.task.labels[i] for i in np.flatnonzero(row)] for row in several.labels] == [
        sorted(t) for t in TAGS
    ]
    pairs, _ = read(**source, text=["body", "topic"], label="stars", kind="similarity", bounds=[0, 5])
    assert list(pairs.second or ()) == TOPICS
    np.testing.assert_allclose(pairs.labels, np.array(STARS) / 5, rtol=1e-6)


def test_texts_alone(files):
    assert read_texts(str(files / "tickets.csv"), "body") == (TEXTS, None)
    assert read_texts(str(files / "tickets.jsonl"), ("body", "topic")) == (TEXTS, TOPICS)


def test_columns_of_zeros_and_ones_equal_lists(tmp_path):
    rows = [{"body": t, **{c: int(c in tags) for c in "abc"}} for t, tags in zip(TEXTS, TAGS)]
    lists, _ = read(train=str(write(tmp_path / "l.jsonl", ROWS)), label="tags", kind="multi_label")
    for suffix in (".csv", ".parquet"):
        path = str(write(tmp_path / f"flags{suffix}", rows))
        flags, _ = read(train=path, label=["a", "b", "c"], kind="multi_label")
        np.testing.assert_array_equal(flags.labels, lists.labels)
        assert flags.task.labels == lists.task.labels == ("a", "b", "c")


def test_names_are_given_or_sorted(tmp_path):
    rows = [{"body": "x", "topic": n} for n in (10, 9, 2, 9, 10, 2)]
    path = str(write(tmp_path / "n.csv", rows))
    assert read(train=path, dev=path)[0].task.labels == ("2", "9", "10")
    train, _ = read(train=path, dev=path, labels=[9, 10, 2])
    assert train.task.labels == ("9", "10", "2") and train.labels.tolist() == [1, 0, 2, 0, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_dev_set_parts_the_examples_and_keeps_shares(tmp_path, seed):
    rng = np.random.default_rng(seed)
    labels = ["rare" if x else "common" for x in rng.random(200) < 0.1]
    rows = [{"body": f"text {i}", "topic": label} for i, label in enumerate(labels)]
    path = str(write(tmp_path / "t.jsonl", rows))
    train, dev = read(train=path, dev_fraction=0.25, split_seed=seed)
    assert len(dev) == 50 and {*train.first} | {*dev.first} == {row["body"] for row in rows}
    assert abs(int(dev.labels.sum()) - labels.count("rare") / 4) <= 1
    order = [int(text.split()[1]) for text in dev.first]
    assert order == sorted(order)
    assert read(train=path, dev_fraction=0.25, split_seed=seed)[1].first == dev.first
    assert read(train=path, dev_fraction=0.25, split_seed=seed + 1)[1].first != dev.first


def csv_of(*rows: str) -> str:
    return "\n".join(["body,topic", *rows, ""])


GOOD = csv_of("one,bug", "two,billing", "three,bug", "four,billing")
BAD: list[tuple[str | bytes, str, dict[str, Any], str]] = [
    (GOOD, ".csv", {"text": "bodi"}, "no column 'bodi'; did you mean 'body'? It has body, topic"),
    (GOOD, ".csv", {"label": "class"}, "no column 'class'; It has body, topic"),
    (GOOD, ".csv", {"text": ["body", "second"]}, "no column 'second'"),
    ("body,topic,body\na,b,c\n", ".csv", {}, "two columns are called 'body'"),
    (GOOD, ".csv", {"labels": ["bug", "bill"]}, "line 3: label 'billing' is not one of labels bug, bill. Did you mean"),
    (GOOD, ".csv", {"labels": ["bug", "billing", "other"]}, "no training example of class 'other'"),
    (csv_of("a,bug", '"two\nlines",bug', ",billing"), ".csv", {}, "line 5: no text in column 'body'"),
    (csv_of("a,bug", '"two\n\nlines",bug', "x,"), ".csv", {}, "line 6: no label in column 'topic'"),
    (csv_of("a,bug", "", "b"), ".csv", {}, "line 4: 1 values for 2 columns (body, topic)"),
    (csv_of("a,bug", "b,c,bug"), ".csv", {}, "line 3: 3 values for 2 columns (body, topic)"),
    (csv_of("a,bug", '"b,bug', "c,bug"), ".csv", {}, "line 3: unexpected end of data"),
    (csv_of("a,bug").encode() + b"na\xefve,bug\n", ".csv", {}, "row 3: not UTF-8 (byte 0xef)"),
    (GOOD.encode("utf-16"), ".csv", {}, "not UTF-8 (UTF-16)"),
    ("", ".csv", {}, "empty, no examples"),
    (csv_of(), ".csv", {}, "empty, no examples"),
    ("\n\n", ".jsonl", {}, "empty, no examples"),
    (csv_of("a,bug", "b,bug"), ".csv", {}, "every label in column 'topic' is 'bug'"),
    (csv_of(*(f"a,{i}.5" for i in range(30))), ".csv", {}, "30 different labels in 30 examples"),
    (csv_of("a,1", "b,high"), ".csv", {"kind": "regression"}, "line 3: score 'high' is not a number."),
    (csv_of("a,1", "b,nan"), ".csv", {"kind": "regression"}, "line 3: score 'nan' is not a number."),
    (csv_of("a,1", "b,"), ".csv", {"kind": "regression"}, "line 3: score '' is not a number."),
    (csv_of("a,1", "b,6"), ".csv", {"kind": "regression", "bounds": [0, 5]}, "score '6' is not a number in [0, 5]"),
    (csv_of("a,1", "b,2"), ".csv", {"kind": "similarity", "text": ["body", "body"]}, "'2' is not a number in [0, 1]"),
    (csv_of("a,bug;x", "b,"), ".csv", {"kind": "multi_label"}, "line 2: 'bug;x' in column 'topic' is no list"),
    (
        csv_of("a,1", "b,2"),
        ".csv",
        {"kind": "multi_label", "label": ["topic"]},
        "'2' in column 'topic' is neither",
    ),
    (csv_of("a,", "b,"), ".csv", {"kind": "multi_label", "separator": ";"}, "no example has a label in column 'topic'"),
    ('{"body": "a", "topic": "x"}\n{"body": "b"', ".jsonl", {}, "line 2: not JSON"),
    ('\n{"body": "a", "topic": "x"}\n\n["b"]', ".jsonl", {}, "line 4: holds \"['b']\""),
    ('{"body": "a", "topic": "x"}\n{"body": "b"}', ".jsonl", {}, "line 2: no label in column 'topic'"),
    ('{"body": "a", "topic": "x"}\n{"body": 5, "topic": "y"}', ".jsonl", {}, "line 2: column 'body' holds 5"),
    ('{"body": "a", "topic": "x", "topic": "y"}', ".jsonl", {}, "line 1: not JSON (two keys 'topic')"),
    ('{"body": "a", "topic": ["x"]}', ".jsonl", {}, "line 1: label ['x'] in column 'topic' is no name"),
    (b"PAR1 not at all", ".parquet", {}, "not a readable Parquet file"),
    (GOOD, ".txt", {}, "give a file that ends in .csv, .tsv, .jsonl, .parquet, or set dataset"),
    (
        GOOD,
        ".csv",
        {"metrics": ["acuracy"]},
        "metric 'acuracy' is unknown; did you mean 'accuracy'? Those that suit",
    ),
    (GOOD, ".csv", {"metrics": ["pearson"]}, "metric 'pearson' does not suit kind = single_label with 2 labels"),
    (GOOD, ".csv", {"class_weights": {"bugs": 2}}, "class_weights: 'bugs' is none of the labels billing, bug"),
    (GOOD, ".csv", {"name": "CoLA"}, "name = 'CoLA' is GLUE's own"),
    (csv_of("a,x", "b,y", "c,y"), ".csv", {}, "dev_fraction = 0.4: class 'x' has one example, which cannot be in both"),
]


@pytest.mark.parametrize(("content", "suffix", "keys", "message"), BAD)
def test_bad_input_is_one_line(tmp_path, content, suffix, keys, message):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read(train=str(path), **keys)
    assert message in str(error.value) and "\n" not in str(error.value)
    if not {"metrics", "class_weights", "name"} & {*keys}:
        assert str(error.value).startswith(str(path))


def test_dev_must_fit_train(tmp_path):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "dev.csv").write_text(csv_of("x,bug", "y,legal"))
    files = {"train": str(tmp_path / "train.csv"), "dev": str(tmp_path / "dev.csv")}
    with pytest.raises(UserError, match=r"dev\.csv, line 3: label 'legal' has no training example; those with"):
        read(**files)
    (tmp_path / "dev.csv").write_text(csv_of("x,bug"))
    with pytest.raises(UserError, match=r"dev\.csv: no dev example of class '.*', which is trained; add some, or name"):
        read(**files)
    classes = [*read(train=files["train"])[0].task.labels]
    assert read(**files, labels=classes)[1].labels.tolist() == [classes.index("bug")]
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read(train="none.csv")


def test_datasets_that_are_not_there(files, tmp_path):
    name = str(files / "tickets")
    with pytest.raises(UserError, match="has no split 'test'"):
        read(dataset=name, train="train", dev="test")
    with pytest.raises(UserError, match="no column 'text'"):
        read(dataset=name, train="train", dev="dev", text="text")
    with pytest.raises(UserError, match=r"^dataset = .*: no .*absent/train: ") as error:
        read(dataset=str(tmp_path / "absent"), train="train", dev="dev")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dev_fraction": 0.0}, "dev and dev_fraction: neither is set"),
        ({"dev": "d.csv", "dev_fraction": 0.1}, "dev and dev_fraction: both are set"),
        ({"dev_fraction": 1.0}, "dev_fraction: input should be less than 1"),
        ({"name": "a/b"}, "name = 'a/b' is no name for a directory"),
        ({"name": "result.json"}, "name = 'result.json' is what a workdir calls something else"),
        ({"name": "best"}, "name = 'best' is what a workdir calls something else"),
        ({"kind": "similarity"}, "text = 'body': kind = similarity compares two texts; name two columns"),
        ({"text": ["a", "b", "c"]}, "name one column, or two for a pair"),
        ({"label": ["a", "b"]}, "kind = single_label takes one column"),
        ({"separator": ";"}, "separator = ';' is for kind = multi_label"),
        ({"kind": "regression", "labels": ["a", "b"]}, "labels: scores have none"),
        ({"labels": ["a", "a"]}, "labels = ['a', 'a'] has one twice"),
        ({"labels": ["a"]}, "give two or more classes"),
        ({"class_weights": "some"}, "class_weights = 'some' is neither none, balanced, nor a weight per name"),
        ({"class_weights": {"a": 0}}, "class_weights: a: 0 is not above 0"),
        ({"kind": "regression", "class_weights": "balanced"}, "class_weights is for kind = single_label"),
        ({"bounds": [0, 1]}, "bounds is for kind = regression and similarity"),
        ({"kind": "regression", "bounds": [1, 0]}, "give the lowest and then the highest score"),
        ({"revision": "abc"}, "subset and revision need dataset"),
        ({"trian": "x"}, "trian: unknown key; did you mean train?"),
        ({"kind": "ranking"}, "kind: input should be 'single_label', 'multi_label', 'regression' or 'similarity'"),
    ],
)
def test_bad_config_is_one_line(keys, message):
    entry = {"name": "tickets", "train": "t.csv", "dev_fraction": 0.1, "text": "body", "label": "topic"} | keys
    with pytest.raises(UserError) as error:
        validate(FinetuneConfig, {"tasks": ["SST-2", entry]}, "c.yaml")
    assert str(error.value).startswith("c.yaml: tasks.1") and message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError) as alone:
        validate(FinetuneConfig, {"tasks": [entry]}, "c.yaml")
    assert str(alone.value) == str(error.value).replace("tasks.1", "tasks.0")


CONFIG = """
tasks:
  - SST-2
  - name: tickets
    train: tickets.csv
    dev: tickets_dev.csv
    text: [title, body]
    label: topic
    labels: [billing, bug, 3]
    metrics: [accuracy, macro_f1]
    class_weights: {bug: 2.5}
  - {name: stars, train: s.jsonl, dev_fraction: 0.1, text: body, label: stars, kind: regression, bounds: [0, 5]}
"""


def test_the_config_goes_round_and_the_command_line_takes_names(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    config = parse(FinetuneConfig, path, [], prog="finetune")
    assert [task_name(entry) for entry in config.tasks] == ["SST-2", "tickets", "stars"]
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert parse(FinetuneConfig, tmp_path / "again.yaml", [], prog="finetune") == config
    assert parse(FinetuneConfig, path, ["--epochs", "1"], prog="finetune").tasks == config.tasks
    picked = parse(FinetuneConfig, path, ["--tasks", "CoLA", "tickets"], prog="finetune")
    assert picked.tasks == ("CoLA", config.tasks[1])
    assert parse(FinetuneConfig, None, ["--tasks", "RTE", "sts"], prog="finetune").tasks == ("RTE", "sts")
    with pytest.raises(UserError, match="tasks: CoLA, CoLA has one twice"):
        parse(FinetuneConfig, path, ["--tasks", "CoLA", "CoLA"], prog="finetune")
    with pytest.raises(SystemExit):
        parse(FinetuneConfig, path, ["--help"], prog="finetune", offers=lambda: {"tasks": [*TASKS]})
    said = " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().out).split())
    assert "One of: CoLA, SST-2, " in said and "(default: SST-2 tickets stars)" in said


def test_only_places_and_metrics_of_a_task_may_change_on_resumption(tmp_path):
    config = validate(FinetuneConfig, {"tasks": [own(train="a.csv").model_dump()]}, "c.yaml")

    def with_task(**keys: Any) -> str:
        task = config.tasks[0]
        assert isinstance(task, OwnTaskConfig)
        return to_yaml(config.model_copy(update={"tasks": (task.model_copy(update=keys),)}))

    moved = with_task(train="b.csv", metrics=("macro_f1",))
    assert not changes(FinetuneConfig, to_yaml(config), moved)
    assert changes(FinetuneConfig, to_yaml(config), with_task(label="kind")) == ["tasks.0.label: 'topic' -> 'kind'"]


def test_paths_hold_from_anywhere():
    assert with_paths("CoLA", str.upper) == "CoLA"
    entry = with_paths(own(train="a.csv", dev="b.csv"), lambda path: f"/root/{path}")
    assert isinstance(entry, OwnTaskConfig) and (entry.train, entry.dev) == ("/root/a.csv", "/root/b.csv")
    entry = with_paths(own(dataset="data", train="train", dev="test"), lambda path: f"/root/{path}")
    assert isinstance(entry, OwnTaskConfig) and (entry.dataset, entry.train) == ("/root/data", "train")


def test_glue_by_name_and_sentence_similarity(tmp_path):
    columns = "index\tsentence1\tsentence2\tscore\n"
    (tmp_path / "STS-B").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "STS-B" / f"{split}.tsv").write_text(f"{columns}0\ta cat\tthe cat\t4.500\n1\ta\tb\t0\n")
    plain, similar = (read_task(name, str(tmp_path)) for name in ("STS-B", "sts"))
    assert [part.task.kind for part in (plain[0], similar[0])] == ["regression", "similarity"]
    assert plain[0].labels.tolist() == [4.5, 0] and similar[1].labels.tolist() == [np.float32(0.9), 0]
    assert similar[0].first == plain[0].first and similar[0].task.head == "similarity"


@pytest.mark.parametrize("seed", range(5))
def test_class_weights(seed):
    """Only ratios matter to a weighted mean; `balanced` gives every class the same sum."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), rng.choice(3, 60, p=[0.7, 0.2, 0.1])]).astype(np.int32)

    def weights(setting: Any) -> np.ndarray:
        task = Task("t", "", ("a",), "b", ("x", "y", "z"), ("accuracy",), class_weights=setting)
        return example_weights(Examples(task, "made up", [""] * len(labels), None, labels))

    assert weights("none").tolist() == [1.0] * len(labels)
    balanced, given = weights("balanced"), weights((0.25, 1.0, 3.0))
    assert balanced.dtype == given.dtype == np.float32 and balanced.min() == given.min() == 1
    np.testing.assert_allclose(np.bincount(labels, balanced), np.full(3, balanced.sum() / 3), rtol=1e-6)
    np.testing.assert_array_equal(given, np.array([1, 4, 12])[labels])


def test_weights_follow_a_subset(files):
    path = str(files / "tickets.csv")
    train, _ = read(train=path, dev=path, class_weights="balanced")
    some = subset(train, 4, 0)
    counts = np.bincount(some.labels, minlength=3)[some.labels]
    np.testing.assert_allclose(example_weights(some), counts.max() / counts, rtol=1e-6)


def test_usual_metrics_suit_their_kinds(files):
    for kind, keys in {
        "single_label": {},
        "multi_label": {"label": "tags"},
        "regression": {"label": "stars"},
        "similarity": {"label": "stars", "text": ["body", "topic"], "bounds": [0, 5]},
    }.items():
        path = str(files / "tickets.jsonl")
        task = read(train=path, dev=path, kind=kind, **keys)[0].task
        assert task.metrics and all(kind in METRICS[name].kinds for name in task.metrics)


def test_a_large_field_is_read(tmp_path):
    long = "word " * 40_000
    with (tmp_path / "long.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["body", "topic"], [long, "a"], ["short", "b"]])
    path = str(tmp_path / "long.csv")
    assert read(train=path, dev=path)[0].first[0] == long


@pytest.mark.slow
def test_the_command_tunes_own_tasks_and_writes_nothing_for_a_bad_one(tiny, pretrained, files, tmp_path):
    """From files to `hf/` whose config says what the labels are; a task that cannot be read stops all before a run."""
    path = str(files / "tickets.jsonl")
    base = {"train": path, "dev": path, "text": "body", "label": "topic"}
    tasks: list[Any] = [
        base | {"name": "topics", "class_weights": "balanced", "metrics": ["macro_f1", "roc_auc"]},
        base | {"name": "tags", "label": "tags", "kind": "multi_label"},
        base | {"name": "pairs", "text": ["body", "topic"], "label": "stars", "kind": "similarity", "bounds": [0, 5]},
    ]
    keys = {"init_from": str(pretrained), "batch_size": 4}
    config = tiny.finetune_yaml(tmp_path / "c.yaml", tasks=tasks, **keys)
    done = tiny.run("finetune", config, "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    rows = pandas.read_csv(tmp_path / "run" / "results.csv").set_index("task")
    metrics = {"topics": "macro_f1", "tags": "micro_f1", "pairs": "spearman"}
    assert dict(rows["metric"]) == metrics and np.isfinite(rows["score"]).all()
    names = {"topics": ("single_label", ["billing", "bug", "other"]), "tags": ("multi_label", ["a", "b", "c"])}
    for task in metrics:
        place = tmp_path / "run" / task / "lr0.001-seed0"
        written, saved = json.loads((place / "hf" / "config.json").read_text()), np.load(place / "dev_predictions.npz")
        assert saved["logits"].shape == ((8, 3) if task in names else (8,))
        if task in names:
            assert written["problem_type"] == f"{names[task][0]}_classification"
            assert [*written["id2label"].values()] == names[task][1]
    bad = tiny.finetune_yaml(tmp_path / "bad.yaml", tasks=[*tasks[:1], base | {"name": "no", "text": "bodi"}], **keys)
    done = tiny.run("finetune", bad, "--workdir", tmp_path / "none")
    assert done.code == 2 and "no column 'bodi'; did you mean 'body'?" in done.err
    assert not (tmp_path / "none").exists()
