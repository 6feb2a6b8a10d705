"""Statistics, the line of transfer and the published tables, against scipy, loops and the paper's own numbers."""

import math

import numpy as np
import pandas
import pytest
import scipy.stats

from jaxprune.analysis.intervals import (
    Estimate,
    Run,
    difference,
    estimate,
    mean_of,
    replicates,
    seed_values,
    task_noise,
)
from jaxprune.analysis.rank_movement import Movement, pool
from jaxprune.analysis.regression import fit_line, lack_of_fit
from jaxprune.errors import UserError
from jaxprune.reports.number_text import fixed, percent, span, with_count, with_noise
from jaxprune.reports.published import TABLES, published

TASKS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA")
# Slopes in accuracy points per nat and r of Fig 2 left, fitted to Table 1 outside this project.
SLOPES = {
    "information_deletion": {
        "MNLI": (-2.4757, -0.9976, -2.5187),
        "QQP": (-0.7578, -0.9938, -0.7731),
        "QNLI": (-3.3533, -0.9941, -3.2918),
        "SST-2": (-2.1492, -0.9875, -2.2693),
        "CoLA": (-3.0439, -0.8836, -2.8678),
    },
    "pruned": {"MNLI": (-4.6388, -0.9994, -4.5636), "CoLA": (-2.8262, -0.8551, -2.4938)},
    "random": {"QNLI": (-5.9574, -0.9747, -5.4775), "CoLA": (-1.4549, -0.8200, -1.7297)},
}


@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_scipy_s(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.8, 0.1, 4 + seed), rng.normal(0.7, 0.02, 3)
    ours, theirs = estimate(list(a)), scipy.stats.ttest_1samp(a, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high)) and ours.n == len(a)
    both = scipy.stats.ttest_rel(a[:3], b)
    change = difference({(0, "x"): by_seed(a[:3]), (1, "x"): by_seed(b)}, 0, 1, ["x"])
    assert change is not None
    assert (change.low, change.high) == pytest.approx(tuple(both.confidence_interval()))


def by_seed(values, starts=()):
    return {seed: Run(float(value), starts[seed] if starts else "") for seed, value in enumerate(values)}


def test_difference_over_tasks():
    """What a seed does to all settings alike, 0.1, is no noise; what it does to one is."""
    cells = {
        (c, t): by_seed([0.5 + 0.1 * c + s * (0.1 + 0.005 * (2 * c - 1)) for s in (-1, 1)])
        for c in (0, 1)
        for t in ("a", "b")
    }
    change = difference(cells, 1, 0, ["a", "b", "missing"])
    # Per task: changes of 0.1 -+ 0.01, whose mean has variance 1e-4 on one degree of freedom; half of that for the mean
    # of two tasks, which has 2 degrees of freedom, t = 4.303.
    assert change is not None and change.mean == pytest.approx(0.1) and change.n == 2
    assert change.half == pytest.approx(4.302653 * math.sqrt(0.5e-4), rel=1e-5)
    assert difference(cells, 1, 2, ["a"]) is None
    alone = difference(cells | {(c, "c"): by_seed([0.5]) for c in (0, 1)}, 1, 0, ["a", "c"])
    assert alone is not None and math.isnan(alone.half)
    other = cells | {(2, "a"): {7: Run(0.5)}}
    assert difference(other, 2, 0, ["a"]) is None  # no seed in common


def test_noise_is_that_of_a_linear_model_fitted_by_least_squares():
    """Settings and seeds as a linear model, cells of one pre-training run apart from cells of several."""
    rng = np.random.default_rng(0)
    runs = {(s, "x"): by_seed(rng.normal(0, 1, 3)) for s in range(4)} | {(4, "x"): {1: Run(0.3)}}
    runs |= {(s, "x"): by_seed(rng.normal(0, 3, 3), [f"{s}-{k}" for k in range(3)]) for s in (5, 6)}

    def residual(settings):
        rows = [(s, seed, run.value) for s in settings for seed, run in runs[s, "x"].items()]
        columns = [[float(r[0] == s) for r in rows] for s in settings]
        columns += [[float(r[1] == k) for r in rows] for k in (1, 2)]  # seed 0 is the base: full rank
        design, y = np.array(columns).T, np.array([r[2] for r in rows])
        fit = np.linalg.solve(design.T @ design, design.T @ y)
        return float(np.square(y - design @ fit).sum()) / (len(y) - design.shape[1]), len(y) - design.shape[1]

    noise, (once, dof), (again, dof_again) = task_noise(runs, "x"), residual(range(5)), residual((5, 6))
    assert (noise.run, noise.run_dof, noise.start_dof) == (pytest.approx(once), dof, dof_again) and (
        dof,
        dof_again,
    ) == (6, 2)
    assert noise.start == pytest.approx(again - once) and noise.start > 0
    # Three pre-training runs against one that is not the setting's own: what their seeds do to both 5 and 6, and not to
    # the four others, stands against nothing.
    means = [np.mean([[runs[s, "x"][k].value for k in range(3)] for s in group], 0) for group in (range(4), (5, 6))]
    seed = float(np.var(means[1] - means[0], ddof=1)) - once / 4 - again / 2
    assert noise.seed == pytest.approx(max(seed, 0)) and noise.seed_dof == 2
    apart = difference(runs, 5, 0, ["x"])
    assert apart is not None
    parts = [(2 * once + again - once) / 3, max(seed, 0) / 3]
    dof_apart = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 2)
    assert apart.half == pytest.approx(scipy.stats.t.ppf(0.975, dof_apart) * math.sqrt(sum(parts)))
    fine = difference(runs, 1, 0, ["x"])
    assert fine is not None and fine.half == pytest.approx(scipy.stats.t.ppf(0.975, 6) * math.sqrt(2 * once / 3))
    lone = difference(runs, 4, 0, ["x"])
    assert lone is not None and lone.half == pytest.approx(scipy.stats.t.ppf(0.975, 6) * math.sqrt(2 * once))


@pytest.mark.parametrize("of_seeds", [0.0, 0.03])
def test_differences_cover_the_truth_when_pre_training_has_chance_too(of_seeds):
    """Scores made of setting, seed, pre-training seed, pre-training run and fine-tuning run. Intervals hold the true
    difference as often as they say, or a little more often, whichever two of these are compared: cells pre-trained once
    per seed, once, and not again; between cells that share their runs intervals are narrow."""
    rng, pairs = np.random.default_rng(1), {}
    hits, width = {}, {}
    for _ in range(400):
        seeds, pretrained, runs = rng.normal(0, 0.02, 3), rng.normal(0, of_seeds, 3), {}
        for s in range(8):
            kind, own = ("again", "once", "none")[(s > 3) + (s > 6)], rng.normal(0, 0.01, 3)
            starts = {"again": pretrained + own, "once": np.repeat(pretrained[0] + own[0], 3), "none": np.zeros(3)}
            names = {"again": [f"{s}-{k}" for k in range(3)], "once": [f"{s}"] * 3, "none": ()}
            runs[s, "x"] = by_seed(0.01 * s + seeds + starts[kind] + rng.normal(0, 0.01, 3), names[kind])
            if s == 3:
                runs["lifted", "x"] = by_seed(seeds + starts[kind] + rng.normal(0, 0.01, 3), names[kind])
        pairs = {"own": (3, 0), "once": (4, 3), "none": (7, 3), "alone": (7, 4), "two": (5, 4), "same": ("lifted", 3)}
        for name, pair in pairs.items():
            change, (ours, other) = difference(runs, *pair, ["x"]), (0 if side == "lifted" else side for side in pair)
            assert change is not None
            hits.setdefault(name, []).append(change.low <= 0.01 * (ours - other) <= change.high)
            width.setdefault(name, []).append(change.half)
    assert all(0.92 < np.mean(hit) < 0.995 for hit in hits.values()), {n: np.mean(hit) for n, hit in hits.items()}
    assert np.median(width["same"]) < 0.8 * np.median(width["own"])


def test_cells_that_share_their_pre_training_runs_count_once():
    """Masks lifted from the runs of `pruned` show the same chance again: no degree of freedom more."""
    rng = np.random.default_rng(0)
    runs = {(s, "x"): by_seed(rng.normal(0, 1, 3), [f"{s}-{k}" for k in range(3)]) for s in range(3)}
    lifted = {("lifted", "x"): by_seed(rng.normal(0, 1, 2), [f"1-{k}" for k in range(3)])}
    assert task_noise(lifted | runs, "x") == task_noise(runs, "x") and task_noise(runs, "x").start_dof == 4


def test_replicates_keep_seed_and_start():
    rows = [
        {"target": 0.5, "task": "x", "metric": m, "seed": s, "start": start, "score": v}
        for s, start, m, v in (
            (3, "p-s0.5", "accuracy", 0.7),
            (1, None, "accuracy", 0.8),
            (2, "", "f1", 0.9),
            (4, "", "accuracy", math.nan),
        )
    ]
    frame = pandas.DataFrame(rows)
    assert replicates(frame, "score", ["target"]) == {(0.5, "x"): {3: Run(0.7, "p-s0.5"), 1: Run(0.8, "")}}
    bare = frame.drop(columns=["seed", "start"])
    assert replicates(bare, "score", ["target"]) == {(0.5, "x"): {0: Run(0.7), 1: Run(0.8)}}
    assert replicates(frame, "loss", ["target"]) == {}


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [s.low <= 0.3 <= s.high for s in (estimate(rng.normal(0.3, 0.1, 3)) for _ in range(2000))]
    assert 0.935 < np.mean(hits) < 0.965


def test_a_single_seed_has_no_interval_and_says_so():
    one = estimate([0.91])
    assert one.mean == 0.91 and math.isnan(one.half) and with_count(one, scale=100) == "91.0 (n = 1, no interval)"
    assert estimate([0.5, math.nan]).n == 1 and with_count(estimate([])) == "–"
    text = with_count(Estimate(-0.912, 0.004, 3), scale=100)
    assert text.replace("\N{NO-BREAK SPACE}", " ") == "−91.2 ± 0.4 (n = 3)"
    both = mean_of([Estimate(0.5, 0.3, 3), Estimate(0.7, 0.4, 5)])
    assert both == pytest.approx((0.6, 0.25, 3))
    assert math.isnan(mean_of([Estimate(0.5, 0.3, 3), one]).half) and mean_of([]).n == 0


def test_numbers_have_one_look():
    assert [fixed(v, 2, sign=True) for v in (1.234, -1.234, -0.001, None, math.nan)] == [
        "+1.23",
        "−1.23",
        "+0.00",
        "–",
        "–",
    ]
    assert fixed(-0.0004, 1, scale=100) == "0.0" and fixed(12345.678, 1) == "12,345.7"
    assert [percent(s).replace("\N{NO-BREAK SPACE}", " ") for s in (0, 0.5, 0.123456, 1)] == [
        "0 %",
        "50 %",
        "12.35 %",
        "100 %",
    ]
    assert [span(v, 1) for v in ([2.0, 1.04, 1.0], [1.01, 1.02], [])] == ["1.0 to 2.0", "1.0", "–"]
    assert with_noise(Estimate(0.1, math.nan, 1), scale=100, sign=True, alone="no interval") == "+10.0 no interval"
    assert with_noise(None) == with_noise(estimate([])) == "–" and with_noise(Estimate(0.1, math.nan, 1)) == "0.1"


def test_seed_values_are_those_of_a_task_s_first_metric():
    rows = [
        {"target": t, "arm": "a", "task": task, "metric": metric, "score": score}
        for t, task, metric, score in (
            (0.5, "y", "matthews", 0.1),
            (0.5, "y", "accuracy", 0.9),
            (0.0, "x", "accuracy", 0.7),
            (0.5, "y", "matthews", 0.2),
            (0.0, "y", "matthews", math.nan),
            (0.0, "x", "accuracy", math.inf),
        )
    ]
    rows = pandas.DataFrame(rows)
    assert seed_values(rows, "score", ["target"]) == {(0.5, "y"): [0.1, 0.2], (0.0, "x"): [0.7]}
    assert [*seed_values(rows, "score", ["arm", "target"])] == [(("a", 0.5), "y"), (("a", 0.0), "x")]
    assert seed_values(rows, "loss", ["target"]) == seed_values(rows[:0], "score", ["target"]) == {}


@pytest.mark.parametrize("seed", range(3))
def test_line_is_scipy_s(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(1.8, 6, 7)
    y = 0.9 - 0.02 * x + rng.normal(0, 0.01, 7)
    line, ours = scipy.stats.linregress(x, y), fit_line(list(x), list(y))
    assert (ours.slope, ours.intercept, ours.r) == pytest.approx((line.slope, line.intercept, line.rvalue))
    assert ours.half == pytest.approx(scipy.stats.t.ppf(0.975, 5) * line.stderr)


@pytest.mark.parametrize(("condition", "task"), [(c, t) for c, tasks in SLOPES.items() for t in tasks])
def test_line_through_table_1(condition, task):
    rows = [r for r in records("table1") if r["condition"] == condition and r["task"] == task]
    ours = fit_line([r["pretrain_loss"] for r in rows], [100 * r["accuracy"] for r in rows])
    assert ours.n == 10
    assert (ours.slope, ours.r, ours.endpoint) == pytest.approx(SLOPES[condition][task], abs=1e-4)


def test_lines_that_cannot_be_drawn():
    assert math.isnan(fit_line([2.0, 2.0], [0.5, 0.6]).slope) and math.isnan(fit_line([], []).slope)
    two = fit_line([1.0, 2.0], [0.5, 0.4])
    assert two.slope == pytest.approx(-0.1) and math.isnan(two.half)
    assert math.isnan(fit_line([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]).r)
    assert math.isnan(fit_line([1.0, 2.0, 3.0], [0.3, 0.1 + 0.2, 0.3]).r)
    with pytest.raises(UserError, match="losses has 2 values, scores 3"):
        fit_line([1, 2], [1, 2, 3])


def test_lack_of_fit_is_the_f_test_of_two_nested_models():
    """A line against a mean per level: the F statistic written out with residuals of numpy's least squares."""
    rng = np.random.default_rng(0)
    levels = np.repeat([0.0, 0.5, 0.7, 0.9], 3)
    x = np.array([1.0, 2.0, 2.0, 4.0]).repeat(3)
    y = 0.3 * x**2 + rng.normal(0, 0.4, 12)
    line, means = (np.stack([np.ones(12), x], 1), np.equal.outer(levels, np.unique(levels)).astype(float))
    about_line, about_means = (float(np.linalg.lstsq(design, y)[1][0]) for design in (line, means))
    statistic = (about_line - about_means) / 2 / (about_means / 8)
    assert lack_of_fit([*x], [*y], [*levels]) == pytest.approx(scipy.stats.f.sf(statistic, 2, 8))
    assert lack_of_fit([*x], [*(x + rng.normal(0, 0.4, 12))], [*levels]) > 0.05
    assert math.isnan(lack_of_fit([1, 2, 3], [1, 2, 3], [1, 2, 3]))  # no replicates
    assert math.isnan(lack_of_fit([1, 1, 2], [1, 2, 3], [1, 1, 2]))  # two levels


def records(name):
    return published(name).to_dict("records")


def test_published_table_1_has_the_printed_averages():
    rows = records("table1")
    assert len(rows) == 4 * 10 * 6

    def average(condition, sparsity):
        cells = [r["accuracy"] for r in rows if (r["condition"], r["sparsity"]) == (condition, sparsity)]
        return 100 * float(np.mean([x for r, x in zip(TASKS, cells)]))

    printed = {("pruned", 0.3): 87.1, ("information_deletion", 0.8): 82.5, ("after_finetuning", 0.9): 71.4}
    for (condition, sparsity), value in {**printed, ("random", 0.5): 78.8}.items():
        assert average(condition, sparsity) == pytest.approx(value, abs=0.06)
    assert all(math.isnan(r["pretrain_loss"]) for r in rows if r["condition"] == "after_finetuning")


def test_pooling_the_published_matrices_gives_table_2():
    """19 of the 20 result files are whole; pooled they are the table's mean and standard deviation."""
    groups = {}
    for r in records("movement_matrices"):
        groups.setdefault((r["task"], r["learning_rate"]), []).append(Movement("", int(r["size"]), r["mean"], r["std"]))
    whole = [r for r in records("table2") if len(groups[r["task"], r["learning_rate"]]) == 73]
    assert len(whole) == 19
    for row in whole:
        pooled = pool(groups[row["task"], row["learning_rate"]])
        assert (pooled.mean, pooled.std) == pytest.approx((row["file_mean"], row["file_std"]), abs=2e-6)
        assert pooled.mean == pytest.approx(row["mean"], abs=6e-5)


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_hold_fractions_and_nats(name):
    rows = records(name)
    assert rows
    for row in rows:
        for key, value in row.items():
            if key in ("sparsity", "accuracy", "mean", "std", "file_mean", "file_std") and not math.isnan(value):
                assert -1 < value < 1, (key, value)
