"""The report of a study: everything on one page, verdicts that follow from the numbers, gaps that are named.

The study is synthetic: the published numbers with three seeds a known distance apart, and made-up weights.
"""

import csv
import functools
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from test_reports_runs import Page

from jaxprune.analysis import study_tables
from jaxprune.analysis.rank_movement import ALL
from jaxprune.analysis.study_tables import of
from jaxprune.errors import UserError
from jaxprune.experiments.study_report import gaps
from jaxprune.reports import score_sections
from jaxprune.reports.claims import CLAIMS, FAILS, HOLDS, UNKNOWN, judge
from jaxprune.reports.evidence import shown
from jaxprune.reports.outcome_section import cost_of, outcome
from jaxprune.reports.published import published
from jaxprune.reports.study_page import study_page

MAJORITY = {"MNLI": 0.354, "QQP": 0.632, "QNLI": 0.505, "SST-2": 0.509, "CoLA": 0.691}
TARGETS = [i / 10 for i in range(10)]
EVIL = '<script>alert("1")</script> $x^2$ &amp;'


def runs(noise=0.002, seeds=3):
    rows = []
    for row in published("table1").to_dict("records"):
        if row["task"] == "AVG":
            continue
        for seed in range(seeds):
            shift = (
                noise * (seed - (seeds - 1) / 2) * (-1) ** round(10 * row["sparsity"])
            )  # no seed is better everywhere
            accuracy = row["accuracy"] + shift
            matthews = accuracy - MAJORITY["CoLA"] if row["task"] == "CoLA" else math.nan
            rows.append(
                {
                    "condition": row["condition"],
                    "variant": study_tables.MAIN[row["condition"]],
                    "target": row["sparsity"],
                    "sparsity": row["sparsity"],
                    "task": row["task"],
                    "learning_rate": 5e-5,
                    "seed": seed,
                    "metric": "matthews" if row["task"] == "CoLA" else "accuracy",
                    "score": matthews if row["task"] == "CoLA" else accuracy,
                    "accuracy": accuracy,
                    "matthews": matthews,
                    "train_loss": row["train_loss"] + shift,
                    "majority": MAJORITY[row["task"]],
                    "pretrain_loss": row["pretrain_loss"],
                    "train_examples": 2000,
                    "dev_examples": 800,
                    "steps": 126,
                }
            )
    return pandas.DataFrame(rows)


@functools.cache
def _synthetic():
    rng = np.random.default_rng(0)
    kinds = ("query", "key", "value", "attention output", "intermediate", "output")
    switched = runs().query("condition == 'pruned' and target == 0.7 and task in ['SST-2', 'CoLA']")
    longer = runs().query("condition == 'after_finetuning' and target == 0.6 and task in ['SST-2', 'CoLA']")
    every = runs()
    every["tuned_epochs"] = np.where(every["condition"] == "after_finetuning", 3, np.nan)
    tables = {
        "runs": pandas.concat(
            [
                every,
                switched.assign(variant="soft"),
                switched.query("seed == 1").assign(variant=EVIL),
                longer.assign(variant="after_12", tuned_epochs=12),
                longer.assign(condition="dense", variant="after_12", target=0.0),  # before its cut: no switch
            ]
        )
    }
    every = published("table1").dropna().query("task == 'MNLI' and condition in ['pruned', 'random']")
    tables["pretrain"] = pandas.DataFrame(
        [
            {"name": f"{r['condition']}-s{r['sparsity']:g}", "variant": r["condition"], "target": r["sparsity"]}
            | {"dev_loss": r["pretrain_loss"], "steps": 400}
            for r in every.to_dict("records")
        ]
        + [{"name": "soft-s0.7", "variant": "soft", "target": 0.7, "dev_loss": 2.7, "steps": 400}]
    )
    tables["transfer"] = study_tables.transfer_table(tables["runs"])
    rows = [{"variant": "pruned", "target": t} for t in TARGETS]
    layers = [{**r, "layer": i} for r in rows for i in range(3)]
    tables["features"] = [{**r, "cosine": 1 - 0.4 * r["target"], "cka": 1 - 0.3 * r["target"]} for r in layers]
    tables["heads"] = [
        {**r, "head": h, "sparsity": r["target"] + 0.02 * (h - 1) * (r["target"] > 0)} for r in layers for h in range(3)
    ]
    label = {"variant": "dense", "epochs": 3, "task": "SST-2", "learning_rate": 5e-5, "seed": 0}
    tables["distance"] = [
        {
            **label,
            "target": t,
            "against": against,
            "path": path,
            "hamming": 0.05 * scale,
            "iou": 0.8,
            "chance": 2 * t * (1 - t),
        }
        | {"ratio": 0.05 * scale / (2 * t * (1 - t))}
        for t in TARGETS[1:]
        for against, scale in (("pruned while pre-training", 1.0), ("cut without fine-tuning", 0.3))
        for path in ("encoder/layer_00/output/kernel", ALL)
    ]
    tables["distance"] += [{**row, "variant": "after_12", "epochs": 12} for row in tables["distance"]]
    tables["movement"] = [
        {
            **label,
            "task": r["task"],
            "learning_rate": r["learning_rate"],
            "seed": seed,
            "path": ALL,
            "mean": r["mean"] + 0.0004 * seed,
            "std": r["std"],
        }
        for r in published("table2").to_dict("records")
        for seed in (-1, 0, 1)
    ] + [{**label, "path": f"x/{kind}", "kind": kind, "mean": 0.02, "std": 0.02} for kind in kinds]
    tables["movement"] += [{**row, "variant": "after_12", "epochs": 12} for row in tables["movement"]]
    share = np.linspace(1.5, 0.5, 100) / 100
    tables["movement_rank"] = [{**label, "bin": i, "before": x, "after": x} for i, x in enumerate(share)]
    tables["magnitude"] = [{"sparsity": s, "abs_sum": s * s, "signed_sum": -s, "abs_share": s * s} for s in TARGETS]
    tables["heatmaps"] = [
        {"figure": name, "path": name, "row": i, "column": j, "abs_mean": rng.random()}
        for name in ("key", "words")
        for i, j in np.ndindex(16, 16)
    ]
    groups = ("[unused]", "special", "1 character", "2-3", "4-6", "7 or more")
    tables["tokens"] = [
        {"variant": v, "target": t, "group": g, "rows": 100, "abs_mean": 0.02 + 0.005 * i, "sparsity": t}
        for v, t in (("dense", 0.0), ("pruned", 0.7))
        for i, g in enumerate(groups)
    ]
    tables["weights"] = published("table3").assign(variant="dense")
    tables["memory"] = published("memory").assign(variant="dense", name="dense")
    soft = {"name": "soft-s0.7", "variant": "soft", "size": 1000, "kept": 300}
    tables["churn"] = [{**soft, "step": s, "regrown": 3, "newly_pruned": 9} for s in range(10, 200, 10)]
    tables["curves"] = [
        {"variant": "pruned", "target": t, "step": s, "loss": 7 - s / 100 + t, "sparsity": t}
        for t in (0.0, 0.7)
        for s in range(0, 400, 5)
    ]
    return {name: pandas.DataFrame(rows) for name, rows in tables.items()}


def synthetic():
    return {name: rows.copy() for name, rows in _synthetic().items()}


CONFIG = {
    "data": "/somebody/else/data",
    "tasks": [{"name": task} for task in study_tables.TASKS],
    "conditions": {
        name: {"sparsities": [*TARGETS, 0.95] if name == "random" else TARGETS} for name in study_tables.CONDITIONS
    },
    "switches": {"soft": {}, "hist256": {}},
}


def write(place: Path, tables) -> Path:
    for name, rows in tables.items():
        study_tables.write_table(place / "tables" / f"{name}.csv", rows)
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("study"), synthetic())
    assert study_page(folder) == folder / "report.html"
    return folder


def test_verdicts_on_the_paper_with_seeds(place):
    found = {row["claim"]: row for row in csv.DictReader((place / "tables" / "claims.csv").read_text().splitlines())}
    assert len(found) == len(CLAIMS)
    held = [claim for claim, row in found.items() if row["status"] == HOLDS]
    assert len(held) == len(CLAIMS), {c: (r["status"], r["why"]) for c, r in found.items() if c not in held}
    free = next(row["why"] for claim, row in found.items() if "free" in claim).replace("\N{NO-BREAK SPACE}", " ")
    assert "free up to 40 %" in free and "dev loss +0.040" in free and "0.8 points counts as one" in free


def test_page_shows_every_item(place):
    page = Page((place / "report.html").read_text(encoding="utf-8"))
    for item in (
        *("Fig 1, Table 1", "Fig 2 left", "Fig 2 right", "Fig 3", "Table 2, Figs 4 right and 6", "Fig 4 left", "Fig 5"),
        *("Figs 7 and 8", "Table 3", "Switches", "Churn", "Training curves", "Memory by part"),
        *("Movement after epochs of fine-tuning", "Masks cut at 60", "Accuracy after the cut at 60"),
    ):
        assert item in page.text, item
    for _, claim, *_ in CLAIMS:
        assert page.text.count(claim) == 2, claim
    assert "CoLA: Matthews correlation" in page.text and "majority class" in page.text
    assert page.tags.count("svg") > 25
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_cells_are_the_numbers(place):
    text = " ".join(Page((place / "report.html").read_text(encoding="utf-8")).text.split())
    half = 4.302653 * 0.002 / math.sqrt(3)  # t on 2 degrees of freedom, seeds 0.002 apart
    assert f"81.8 ± {100 * half:.1f}n = 3, loss 0.3281.8 / 0.32" in text
    assert "−2.48 ± " in text and "−0.998" in text
    assert "4.12 ± 0.10 (n = 3)" in text  # Table 2, MNLI at 5e-5
    assert "90.1 (n = 1, no interval)" in text  # the switch with one seed
    for known in ("23,440,896", "21.29 %"):
        assert known.replace(" ", " ") in text.replace("\N{NO-BREAK SPACE}", " "), known


def test_page_stands_alone_and_escapes(place):
    text = (place / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert [v for n, v in page.attributes if "://" in v and not n.startswith("xmlns")] == []
    targets = {v for n, v in page.attributes if n == "href"}
    anchors = {f"#{v}" for n, v in page.attributes if n == "id"}
    assert {v for v in targets if v.startswith("#")} <= anchors
    assert all((place / v).is_file() for v in targets if not v.startswith("#"))
    assert "<script" not in text and "$x^2$" in text and "/somebody" not in text and ".../data" in text


def test_parquet_holds_what_csv_holds(place):
    for path in sorted((place / "tables").glob("*.csv")):
        pandas.testing.assert_frame_equal(
            pandas.read_parquet(path.with_suffix(".parquet")), pandas.read_csv(path), check_dtype=False
        )


def test_same_tables_same_page(place):
    before = (place / "report.html").read_bytes()
    assert study_page(place).read_bytes() == before


@pytest.mark.parametrize("name", [*study_tables.TABLES])
def test_a_missing_table_makes_verdicts_that_say_so(name):
    missing = {name, "transfer"} if name == "runs" else {name}  # the lines are made from the runs
    every = {v.claim: v for v in judge(whole())}
    without = {v.claim: v for v in judge(whole() | dict.fromkeys(missing, pandas.DataFrame()))}
    changed = [v for claim, v in without.items() if v != every[claim]]
    assert all(v.status == UNKNOWN and v.why for v in changed)
    assert bool(changed) == (name not in ("magnitude", "heatmaps", "churn", "curves"))


@pytest.mark.parametrize("kept", [("runs", "pretrain", "movement", "distance"), ("features", "heads", "tokens")])
def test_missing_tables_leave_gaps_on_the_page(tmp_path, kept):
    page = Page(study_page(write(tmp_path, {name: whole()[name] for name in kept})).read_text(encoding="utf-8"))
    spoken, _, silent = page.text.partition("What this study cannot speak about")
    asked = {verdict.claim for verdict in judge({name: whole()[name] for name in kept}) if verdict.asked}
    assert asked and len(asked) < len(CLAIMS)
    for _, claim, *_ in CLAIMS:  # in the list and with its figures, or in one line of the end
        assert (spoken.count(claim), silent.count(claim)) == ((2, 0) if claim in asked else (0, 1))
    assert "Churn of soft masks" not in page.text
    assert ("Scores against sparsity" in page.text) == ("runs" in kept)
    assert ("Attention heads" in page.text) == ("heads" in kept)


def test_one_table_alone_is_a_page_of_gaps(tmp_path):
    page = Page(study_page(write(tmp_path, {"pretrain": synthetic()["pretrain"]})).read_text(encoding="utf-8"))
    assert "Cannot tell what pruning costs: no fine-tuning run of a pruned model is finished." in page.text
    assert "What the paper claims" not in page.text and page.text.count("What this study cannot speak about") == 1
    with pytest.raises(UserError, match=r"has no tables/\*.csv"):
        study_page(tmp_path / "nothing")


def test_means_are_over_the_tasks_that_verdicts_rest_on():
    """A task on which the unpruned model is no better than the commonest class counts nowhere, and that is said."""
    tables = whole()
    runs = tables["runs"]
    runs.loc[runs["task"] == "CoLA", "majority"] = 0.99
    runs.loc[runs["task"] == "CoLA", "metric"] = "accuracy"
    names = [task for task in study_tables.TASKS if task != "CoLA"]
    section = outcome(tables, cost_of(tables)[0])
    levels, means = section.grids
    assert section.ours[0].caption == "Score, mean over MNLI, QQP, QNLI and SST-2"
    assert "mean over MNLI, QQP, QNLI and SST-2. Left out: CoLA: the unpruned model does not beat" in levels.caption
    assert means.caption == "Mean score × 100 over MNLI, QQP, QNLI and SST-2, as in the figure."
    cells = of(runs, condition="pruned", variant="pruned", target=0.7)
    mean = cells[cells["task"].isin(names)].groupby("task")["score"].mean().mean()
    row = next(row for row in means.rows if row[0].startswith("70"))
    assert row[1].startswith(f"{100 * mean:.1f}")
    assert score_sections.counted_tasks(tables) == names


def test_a_claim_that_the_data_cannot_carry_cannot_be_told():
    tables = whole()
    verdicts = {v.claim: shown(v, tables) for v in judge(tables)}
    assert all(v.status == HOLDS for v in verdicts.values())
    tables["heads"] = tables["heads"][(tables["heads"]["target"] - 0.6).abs() > 0.06]
    heads = judged({v.claim: shown(v, tables) for v in judge(tables)}, "Heads are pruned evenly")
    assert heads.status == UNKNOWN and "60" in heads.why
    runs = tables["pretrain"]
    for right, status in ((0.04, UNKNOWN), (0.2, HOLDS)):
        dense = pandas.DataFrame([{"variant": "dense", "target": 0.0, "dev_loss": 2.0, "mlm_accuracy": right}])
        tables["pretrain"] = pandas.concat([dense, runs])
        pieces = judged({v.claim: shown(v, tables) for v in judge(tables)}, "Short pieces")
        assert pieces.status == status and ("hardly trained" in pieces.why) == (status == UNKNOWN)


def whole():
    return study_tables.complete(synthetic())


def with_(change):
    tables = whole()
    change(tables)
    return {v.claim: v for v in judge(tables)}


def judged(verdicts, word):
    return next(v for claim, v in verdicts.items() if word in claim)


def shifted(tables, condition, change, where="target > 0"):
    rows = tables["runs"]
    hit = (rows["condition"] == condition) & rows.eval(where)
    for column in ("score", "accuracy", "matthews"):
        rows.loc[hit, column] += change


def only_40(tables):
    rows = tables["runs"]
    tables["runs"] = rows[~rows["target"].between(0.25, 0.35)]
    rows = tables["pretrain"]
    tables["pretrain"] = rows[~rows["target"].between(0.25, 0.35)]


def test_verdicts_turn_when_the_numbers_do():
    """Each rule is shown numbers on which its claim is wrong."""
    found = with_(lambda t: shifted(t, "pruned", -0.05))
    assert judged(found, "free").status == FAILS and judged(found, "Fine-tuning first does not").status == FAILS
    assert judged(with_(lambda t: shifted(t, "random", 0.3)), "Magnitude").status == FAILS
    assert judged(with_(lambda t: shifted(t, "information_deletion", 0.05)), "Lifting").status == FAILS

    def scatter(tables):
        rng = np.random.default_rng(0)
        rows = tables["runs"]
        rows["accuracy"] = rows.groupby(["condition", "target", "task"])["accuracy"].transform(
            lambda x: x - x.mean() + rng.uniform(0.5, 0.9)
        )
        tables["transfer"] = study_tables.transfer_table(rows)

    assert judged(with_(scatter), "linearly").status != HOLDS

    def worse(name, column, value):
        def change(tables):
            tables[name][column] = value

        return change

    assert judged(with_(worse("features", "cosine", 0.9)), "drift").status == FAILS
    assert judged(with_(worse("distance", "hamming", 0.07)), "almost the same").status == FAILS
    assert judged(with_(worse("movement", "mean", 0.2)), "0–4 %").status == FAILS
    assert judged(with_(worse("distance", "hamming", 0.07)), "for longer").status == FAILS

    def better_later(tables):
        rows = tables["runs"]
        rows.loc[rows["variant"] == "after_12", "score"] += 0.05

    assert judged(with_(better_later), "for longer").status == FAILS
    once = with_(lambda t: t.update(runs=t["runs"][t["runs"]["variant"] != "after_12"]))
    assert judged(once, "for longer").status == UNKNOWN
    assert judged(with_(worse("heads", "sparsity", 0.8)), "evenly").status == FAILS
    rank = with_(lambda t: t.update(movement_rank=t["movement_rank"].assign(before=np.linspace(0.5, 1.5, 100) / 100)))
    assert judged(rank, "High-magnitude").status == FAILS
    assert judged(with_(worse("tokens", "abs_mean", 0.1)), "Short pieces").status == FAILS
    assert judged(with_(worse("weights", "std", 0.2)), "centred").status == FAILS
    assert judged(with_(worse("memory", "share", 0.2)), "21 %").status == FAILS
    dear = with_(lambda t: (shifted(t, "pruned", -0.05, "target == 0.4"), only_40(t)))
    assert judged(dear, "free").status == FAILS  # the lowest measured from 30 % to 40 %
    flat = with_(worse("runs", "train_loss", 0.1))
    assert judged(flat, "fitted less well").status == FAILS


def test_noise_and_single_seeds_cannot_tell():
    one = with_(lambda t: t.update(runs=runs(seeds=1)))
    for word in ("free", "fitted", "Magnitude", "Lifting", "does not improve"):
        assert judged(one, word).status == UNKNOWN and "one seed" in judged(one, word).why
    wide = with_(lambda t: t.update(runs=runs(noise=0.3)))
    assert {judged(wide, word).status for word in ("free", "Lifting", "does not improve")} == {UNKNOWN}


def test_what_counts_is_a_share_of_what_there_is_to_lose():
    """A model that learned a fifth as much beyond the majority, with a fifth of the noise, gets the same verdicts."""

    def fifth(tables):
        rows = tables["runs"]
        floor = rows["majority"].where(rows["metric"] == "accuracy", 0.0)
        rows["score"] = floor + 0.2 * (rows["score"] - floor)

    statuses, scaled = ({c: v.status for c, v in with_(change).items()} for change in (lambda t: None, fifth))
    assert statuses == scaled and {*statuses.values()} == {HOLDS}

    def lost(points):
        return judged(with_(lambda t: shifted(t, "pruned", -points, "0 < target < 0.5")), "free")

    assert (lost(0.003).status, lost(0.05).status) == (HOLDS, FAILS)
    assert "counts as one" in lost(0.05).why and "the seeds can show" in lost(0.05).why


def test_chance_in_pre_training_is_in_the_verdicts():
    """The same scores: where each seed has a pre-training run of its own, what the runs scatter counts as noise."""
    shift = {0.0: (0.03, -0.03, 0.0), 0.3: (-0.03, 0.03, 0.0), 0.5: (0.0, 0.03, -0.03), 0.7: (-0.03, 0.0, 0.03)}

    def scattered(starts):
        def change(tables):
            rows = tables["runs"] = tables["runs"].astype({"start": object})
            rows["start"] = "pruned-s" + rows["target"].astype(str)
            for target, values in shift.items():
                for seed, value in enumerate(values):
                    hit = (rows["condition"] == "pruned") & (rows["target"] == target) & (rows["seed"] == seed)
                    rows.loc[hit, ["score", "accuracy"]] += value
                    rows.loc[hit, "start"] = f"pruned-s{target:g}" + (f"-seed{seed}" if starts else "")

        return change

    quiet, noisy = judged(with_(lambda t: None), "free"), judged(with_(scattered(True)), "free")
    assert quiet.status == HOLDS and noisy.status == UNKNOWN and "may hide there" in noisy.why
    # Cells that were pre-trained once cannot be better known than those that were pre-trained three times.
    halves = {part.split()[0]: float(part.split("±")[1].split()[0]) for part in noisy.why.split(";")[:4]}
    assert halves["10"] > halves["30"] > 1, noisy.why


def test_scores_without_fine_tuning_are_part_of_no_verdict():
    def similarity(tables):
        rows = tables["runs"].query("task == 'MNLI'").assign(task="sts", metric="spearman", steps=0, accuracy=math.nan)
        rows["spearman"] = rows["score"] = np.linspace(0, 1, len(rows))
        tables["runs"] = pandas.concat([tables["runs"], rows], ignore_index=True)

    assert with_(similarity) == with_(lambda t: None)


def test_the_shape_of_bert_base_is_not_judged_on_another():
    def small(tables):
        tables["memory"] = tables["memory"].assign(weights=tables["memory"]["weights"] / 5, share=0.2)

    verdict = judged(with_(small), "21 %")
    assert verdict.status == UNKNOWN and "another shape of model" in verdict.why


def test_the_best_learning_rate_is_taken():
    rows = pandas.concat([runs(), runs().assign(learning_rate=2e-5, score=-1.0)])
    assert {*study_tables.best_rate(rows)["learning_rate"]} == {5e-5} and len(study_tables.best_rate(rows)) == len(
        runs()
    )


def test_random_pruning_of_nothing_is_the_pruned_cell():
    rows = runs()
    rows = rows[~((rows["condition"] == "random") & (rows["target"] == 0))]
    found = study_tables.cells(rows)
    random, pruned = (study_tables.setting_of(condition, 0.0) for condition in ("random", "pruned"))
    assert found[random, "SST-2"] == found[pruned, "SST-2"]
    once = study_tables.seeded(rows)
    assert (random, "SST-2") not in once  # else one run would count as two that agree
    assert study_tables.base_of("random", 0.0, once) == pruned
    assert study_tables.base_of("random", 0.5, once) == study_tables.setting_of("random", 0.5)


def test_a_rate_is_said_to_be_the_best_only_where_a_cell_had_several(tmp_path):
    """Two tasks with a rate each chose nothing; the runs that are counted are those that trained."""
    every = synthetic()
    rows = every["runs"] = every["runs"].copy()
    rows.loc[rows["task"] == "CoLA", "learning_rate"] = 1e-4
    untrained = rows[rows["task"] == "MNLI"].assign(task="sts", metric="spearman", steps=0, accuracy=math.nan)
    untrained["tuned_epochs"] = 0
    every["runs"] = pandas.concat([rows, untrained])
    text = study_page(write(tmp_path, every)).read_text(encoding="utf-8")
    assert "5e-05, 0.0001<" in text and "the best of a cell" not in text
    assert f"<dd>{len(rows):,}</dd>".replace(",", "") in text.replace(",", "")
    both = pandas.concat([rows, rows.assign(learning_rate=2e-5, score=-1.0)])
    text = study_page(write(tmp_path / "both", synthetic() | {"runs": both})).read_text(encoding="utf-8")
    assert "the best of a cell on the dev set" in text


def test_planned_runs_that_are_missing_are_named(tmp_path):
    """Cells, seeds and switches of a study's config that its table lacks, whatever condition."""
    config = {
        "command": "study",
        "tasks": [{"name": "SST-2", "seeds": [0, 1]}, {"name": "sts", "seeds": [0, 1], "finetune": {"epochs": 0}}],
        "conditions": {"pruned": {"sparsities": [0, 0.5]}, "random": {"sparsities": [0, 0.5]}},
        "switches": {"soft": {"recover": {"prune": {"mode": "soft"}}, "sparsities": [0.5, 0.7]}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = [("pruned", "pruned", 0.0, "SST-2", s) for s in (0, 1)] + [("pruned", "pruned", 0.0, "sts", 0)]
    done += [
        ("pruned", "pruned", 0.5, "SST-2", 0),
        ("pruned", "soft", 0.5, "SST-2", 0),
        ("pruned", "soft", 0.5, "sts", 0),
    ]
    columns = ("condition", "variant", "target", "task", "seed")
    study_tables.write_table(tmp_path / "tables" / "runs.csv", [dict(zip(columns, row, strict=True)) for row in done])
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in gaps(tmp_path)] == [
        "pruned at 50 %: SST-2 (seed 1), sts",
        "random at 50 %: SST-2, sts",
        "switch soft at 50 %: SST-2 (seed 1)",
        "switch soft at 70 %: SST-2, sts",
    ]
    (tmp_path / "config.yaml").write_text("command: study\nold: 1\n")
    assert "another version" in gaps(tmp_path)[0]
    page = study_page(write(tmp_path, synthetic()), gaps=["random at 95 %: MNLI"]).read_text(encoding="utf-8")
    assert "random at 95 %: MNLI" in page
