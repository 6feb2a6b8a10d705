"""The sections about what fine-tuning does to the weights of the dense model, beside the published numbers."""

import dataclasses

import numpy as np

from jaxprune.analysis import plots
from jaxprune.analysis.layout import SPARSITY, Grid, Picture, Section, band, cell, section
from jaxprune.analysis.movement import RANDOM
from jaxprune.analysis.plots import Series
from jaxprune.analysis.prose import percent
from jaxprune.analysis.published import published
from jaxprune.analysis.statistics import summary, text
from jaxprune.analysis.study import PRETRAINED, TASKS, UNTUNED, Frame, Tables, of_variant, tasks

PAPERS_CUT = 0.6
"""Sparsity of the cut of Fig 3 bottom."""
KEEP = "No weights of a fine-tuned dense model were kept (keep_weights: true keeps them)."


def masks(tables: Tables) -> Section:
    """Fig 3."""
    about = (
        "Fine-tune the dense model, cut it in one shot, and compare the masks. Against masks pruned while pre-training "
        "(the paper's comparison) the difference also holds the drift of all that training; against the same cut "
        "without fine-tuning it holds fine-tuning alone. Two independent masks of sparsity s differ in 2 s (1 − s) of "
        "the weights, so the same Hamming distance means less agreement at 90 % than at 50 %. Bands: lowest to highest "
        "over tasks, learning rates and seeds."
    )
    every, ours = tables["distance"], []
    every = every[every["path"] == "all"] if len(every) else every
    if len(rows := of_variant(every, "dense")):
        named = [(str(against), some) for against, some in rows.groupby("against")]
        short = {PRETRAINED: "all drift", UNTUNED: "tuning only"}
        lines = [band(short[name], some, "hamming", i) for i, (name, some) in enumerate(named)]
        chance = rows.groupby("target")["chance"].mean()
        lines.append(Series("chance", chance.index.tolist(), chance.tolist(), 7))
        paper = [(0.06, "6 % (paper)")]
        for title, label, drawn, dashed, fraction in (
            ("Masks differ in", "share of the weights (%)", lines, paper, True),
            (
                "Difference against chance",
                "difference / chance",
                _bands(named, short, "ratio"),
                [(1.0, "chance")],
                False,
            ),
            ("Overlap of the kept weights", "kept by both / by either", _bands(named, short, "iou"), [], False),
        ):
            ours.append(
                (title, plots.curves(drawn, label=label, xlabel=SPARSITY, title=title, percent=fraction, lines=dashed))
            )
        ours += _masks_by_epoch(every) + _scores_by_epoch(tables["runs"])
    words = (
        "In words only: below 6 % of all weights at every sparsity, task and learning rate (6 % is an overlap of 0.86 "
        "at 60 % sparsity, of 0.54 at 90 %), and no more after 12 epochs of fine-tuning than after 3 (Fig 3 bottom)."
    )
    items = ("Fig 3", "Fig 3 bottom")
    grid = _per_matrix(of_variant(tables["distance"], "dense")) if ours else []
    return section("What fine-tuning changes in the masks (Fig 3)", about, items, ours, words, KEEP, grid)


def _masks_by_epoch(rows: Frame) -> list[Picture]:
    """Fig 3 bottom, above: the cut nearest to the paper's, against the same cut without fine-tuning."""
    target = min(rows["target"].unique(), key=lambda t: abs(t - PAPERS_CUT))
    some = rows[(rows["target"] == target) & (rows["against"] == UNTUNED)]
    title = f"Masks cut at {percent(target)} after epochs of fine-tuning"
    return _by_epoch(some, "epochs", "hamming", 0.0, title, "differ from the dense model's cut (% of weights)")


def _scores_by_epoch(runs: Frame) -> list[Picture]:
    """Fig 3 bottom, below: scores after the cut and more fine-tuning, at the sparsity with the most such runs."""
    if "tuned_epochs" not in runs or not len(some := runs.dropna(subset="tuned_epochs")):
        return []
    settings = some.groupby("target")["tuned_epochs"].nunique()
    target = settings.idxmax()
    some = some[(some["target"] == target) & ~some["variant"].str.contains("sawtooth")]
    title = f"Accuracy after the cut at {percent(target)} and more fine-tuning"
    return _by_epoch(some, "tuned_epochs", "accuracy", None, title, "dev accuracy (× 100)")


def _by_epoch(rows: Frame, x: str, y: str, at_zero: float | None, title: str, label: str) -> list[Picture]:
    """A curve per task with intervals over its seeds; nothing when all rows have the same number of epochs."""
    if rows[x].nunique() < 2:
        return []
    lines = []
    for i, task in enumerate(tasks(rows)):
        found = {epoch: summary([*values]) for epoch, values in rows[rows["task"] == task].groupby(x)[y]}
        if len(found) > 1:
            xs, means, halves = [*found], [v.mean for v in found.values()], [v.half for v in found.values()]
            first = [] if at_zero is None else [at_zero]
            zero = [0.0] * len(first)
            lines.append(Series(task, zero + xs, first + means, i, zero + halves))
    xlabel = "epochs of fine-tuning before the cut" if x == "tuned_epochs" else "epochs of fine-tuning"
    return [(title, plots.curves(lines, label=label, xlabel=xlabel, title=title, percent=True, xpercent=False))]


def movement(tables: Tables) -> Section:
    """Table 2, Fig 4 right, Fig 6."""
    about = (
        "By how many places a weight moves in the order of |w| of its matrix while the dense model is fine-tuned, as a "
        "share of all places; the word embeddings are left out, as in the paper. Two random orders move "
        f"{100 * RANDOM:.1f} %. The figure shares all movement out by the place before (as the axis of Fig 6 "
        "says) and by the place after (what the authors' script drew)."
    )
    rows, grids, epochs = tables["movement"], [], []
    if len(rows):
        main, pooled = of_variant(rows, "dense"), rows[rows["path"] == "all"]
        grids = [_table2(main[main["path"] == "all"]), _by_kind(main[main["path"] != "all"])]
        title = "Movement after epochs of fine-tuning"
        epochs = _by_epoch(pooled, "epochs", "mean", 0.0, title, "mean movement (%)")
    words = "The values of Fig 6 are printed nowhere."
    if not epochs:
        words += " Movement by epochs (Fig 4 right) needs a switch whose cut comes after another number of epochs."
    title = "How far fine-tuning moves weights (Table 2, Figs 4 right and 6)"
    items = ("Table 2, Fig 4 right", "Fig 6")
    ours = [*epochs, *_by_place(tables)]
    found = section(title, about, items, ours, words, KEEP, grids or [_table2(rows)], [_epochs()])
    return dataclasses.replace(found, pairs=len(epochs))


def _by_place(tables: Tables) -> list[Picture]:
    rows = of_variant(tables["movement_rank"], "dense")
    if not len(rows):
        return []
    means = rows.groupby("bin")[["before", "after"]].mean()
    x = [(i + 0.5) / len(means) for i in means.index]
    lines = [Series(f"place {side}", x, means[side].tolist(), i, points=False) for i, side in enumerate(means)]
    title = "Share of all movement by place in the order"
    label, xlabel = "share of all movement (%)", "place in the order of |w|, lowest first (%)"
    even = [(1 / len(means), "even")]
    return [(title, plots.curves(lines, label=label, xlabel=xlabel, title=title, percent=True, lines=even))]


def _epochs() -> Picture:
    rows = published("movement_epochs")
    lines = [
        Series(task, *([r[name] for r in rows if r["task"] == task] for name in ("epoch", "mean")), color=i)
        for i, task in enumerate(TASKS)
    ]
    title = "Published: movement after each epoch at 5e-5"
    label = "mean movement (%)"
    return title, plots.curves(lines, label=label, xlabel="epoch", title=title, percent=True, xpercent=False)


def _table2(rows: Frame) -> Grid:
    printed, names = published("table2"), tasks(rows) or list(TASKS)
    body = []
    for rate in sorted({*(rows["learning_rate"] if len(rows) else ())}):
        line = [cell(f"{rate:g}"), cell("this study")]
        for task in names:
            some = rows[(rows["learning_rate"] == rate) & (rows["task"] == task)]
            line.append(
                cell(text(summary([*some["mean"]]), scale=100, digits=2), f"std {100 * some['std'].mean():.2f}")
            )
        body.append(line)
    for rate in sorted({row["learning_rate"] for row in printed}):
        line = [cell(f"{rate:g}"), cell("published")]
        for task in names:
            some = [r for r in printed if r["task"] == task and r["learning_rate"] == rate]
            line.append(
                [(f"{100 * r['mean']:.2f}", True) for r in some] + [(f"std {100 * r['std']:.2f}", True) for r in some]
            )
        body.append(line)
    caption = (
        "Mean movement, % of all places, ± half of the 95 % interval over seeds; std: over the weights. The published "
        "CoLA at 2e-5 comes from a file cut short after 9 of 73 matrices."
    )
    return Grid(caption, ("learning rate", "", *names), body)


def _by_kind(rows: Frame) -> Grid:
    printed = [row for row in published("movement_matrices") if row["learning_rate"] == 5e-5]
    names, body = tasks(rows), []
    for kind, some in rows.groupby("kind"):
        line = [cell(kind)]
        for task in names:
            mine = some[some["task"] == task]["mean"]
            theirs = [r["mean"] for r in printed if r["task"] == task and r["kind"] == kind]
            line.append(
                [(f"{100 * mine.mean():.2f}", False), (f"{100 * np.mean(theirs):.2f}" if theirs else "–", True)]
            )
        body.append(line)
    return Grid(
        "Movement by kind of matrix, % of all places, mean over layers; second line: published, at 5e-5.",
        ("matrix", *names),
        body,
    )


def _per_matrix(rows: Frame) -> list[Grid]:
    some = rows[(rows["path"] != "all")]
    targets, body = sorted(some["target"].unique()), []
    for path, group in some.groupby("path", sort=False):
        line = [cell(str(path))]
        for target in targets:
            at = group[group["target"] == target].groupby("against")["ratio"].mean()
            line.append(cell(" / ".join(f"{value:.2f}" for value in at)))
        body.append(line)
    order = " / ".join(sorted(str(name) for name in some["against"].unique()))
    return [
        Grid(
            f"Difference of the masks over chance, per matrix, at each sparsity: {order}.",
            ("matrix", *map(percent, targets)),
            body,
        )
    ]


def _bands(named: list, short: dict[str, str], column: str) -> list[Series]:
    return [band(short[name], some, column, i) for i, (name, some) in enumerate(named)]
