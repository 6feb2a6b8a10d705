"""The sections about what fine-tuning does to the weights of the dense model, beside the published numbers."""

import numpy as np

from jaxprune.analysis import plots
from jaxprune.analysis.layout import SPARSITY, Grid, Picture, Section, band, cell, section
from jaxprune.analysis.movement import RANDOM
from jaxprune.analysis.plots import Series
from jaxprune.analysis.prose import percent
from jaxprune.analysis.published import published
from jaxprune.analysis.statistics import summary, text
from jaxprune.analysis.study import TASKS, Frame, Tables, tasks

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
    rows, ours = tables["distance"], []
    if len(rows := rows[rows["path"] == "all"] if len(rows) else rows):
        named = [(str(against), some) for against, some in rows.groupby("against")]
        short = {name: "all drift" if "pre-training" in name else "tuning only" for name, _ in named}
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
    words = (
        "In words only: below 6 % of all weights at every sparsity, task and learning rate (6 % is an overlap of 0.86 "
        "at 60 % sparsity, of 0.54 at 90 %). Fig 3 bottom, the same against epochs of fine-tuning before the cut, "
        "needs runs that this study does not have."
    )
    grid = _per_matrix(tables["distance"]) if ours else []
    return section("What fine-tuning changes in the masks (Fig 3)", about, ("Fig 3",), ours, words, KEEP, grid)


def movement(tables: Tables) -> Section:
    """Table 2, Fig 4 right, Fig 6."""
    about = (
        "By how many places a weight moves in the order of |w| of its matrix while the dense model is fine-tuned, as a "
        "share of all places; the word embeddings are left out, as in the paper. Two random orders move "
        f"{100 * RANDOM:.1f} %. The figure shares all movement out by the place before (as the axis of Fig 6 "
        "says) and by the place after (what the authors' script drew)."
    )
    rows, grids = tables["movement"], []
    if len(rows):
        grids = [_table2(rows[rows["path"] == "all"]), _by_kind(rows[rows["path"] != "all"])]
    words = (
        "The values of Fig 6 are printed nowhere. Movement per epoch (Fig 4 right) needs weights after every epoch, "
        "which this study does not keep."
    )
    title = "How far fine-tuning moves weights (Table 2, Figs 4 right and 6)"
    items = ("Table 2, Fig 4 right", "Fig 6")
    return section(title, about, items, _by_place(tables), words, KEEP, grids or [_table2(rows)], [_epochs()])


def _by_place(tables: Tables) -> list[Picture]:
    if not len(tables["movement_rank"]):
        return []
    means = tables["movement_rank"].groupby("bin")[["before", "after"]].mean()
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
