"""The sections about what fine-tuning does to the weights of the dense model, beside the published numbers."""

from jaxprune.analysis.intervals import estimate
from jaxprune.analysis.study_tables import PRETRAINED, TASKS, UNTUNED, Frame, Tables, of, tasks, trained
from jaxprune.reports.charts import Series, curves
from jaxprune.reports.number_text import fixed, percent, with_count
from jaxprune.reports.published import published
from jaxprune.reports.section import Cell, Grid, Published, Section, band
from jaxprune.reports.svg import INK, Figure, category

PAPERS_CUT = 0.6
"""Sparsity of the cut of Fig 3 bottom."""


def masks(tables: Tables) -> Section:
    """Fig 3."""
    whole, dense = of(tables["distance"], path="all"), of(tables["distance"], variant="dense")
    rows = of(dense, path="all")
    if not len(rows):
        return Section(measured=False)
    chance = rows.groupby("target")["chance"].mean()
    lines = [*_bands(rows, "hamming"), Series("chance", [*chance.index], [*chance], category(7))]
    paper, even = (0.06, "6 % (paper)", INK["muted"]), (1.0, "chance", INK["muted"])
    figures = [
        curves("Masks differ in", lines, "share of the weights (%)", dashed=[paper]),
        curves("Difference against chance", _bands(rows, "ratio"), "difference / chance", dashed=[even]),
        curves("Overlap of the kept weights", _bands(rows, "iou"), "kept by both / by either"),
        *_masks_by_epoch(whole),
        *_scores_by_epoch(tables["runs"]),
    ]
    return Section(figures, grids=[_per_matrix(dense[dense["path"] != "all"])])


def _bands(rows: Frame, column: str) -> list[Series]:
    names = {PRETRAINED: "all drift", UNTUNED: "tuning only"}
    groups = enumerate(rows.groupby("against"))
    return [band(names[against], compared, column, i) for i, (against, compared) in groups]


def _masks_by_epoch(rows: Frame) -> list[Figure]:
    """Fig 3 bottom, above: the cut nearest to the paper's, against the same cut without fine-tuning."""
    target = min(rows["target"].unique(), key=lambda t: abs(t - PAPERS_CUT))
    title = f"Masks cut at {percent(target)} after epochs of fine-tuning"
    label = "differ from the dense model's cut (% of weights)"
    return _by_epoch(title, of(rows, target=target, against=UNTUNED), "epochs", "hamming", label, from_zero=True)


def _scores_by_epoch(runs: Frame) -> list[Figure]:
    """Fig 3 bottom, below: scores after the cut and more fine-tuning, at the sparsity with the most such runs."""
    runs = trained(runs).dropna(subset=["tuned_epochs", "accuracy"])
    if not len(runs):
        return []
    target = runs.groupby("target")["tuned_epochs"].nunique().idxmax()
    runs = of(runs[~runs["variant"].str.contains("sawtooth")], target=target)
    title = f"Accuracy after the cut at {percent(target)} and more fine-tuning"
    return _by_epoch(title, runs, "tuned_epochs", "accuracy", "dev accuracy (× 100)", before="before the cut")


def _by_epoch(
    title: str, rows: Frame, x: str, y: str, label: str, *, from_zero: bool = False, before: str = ""
) -> list[Figure]:
    """A curve per task with intervals over its seeds; nothing when all rows have the same number of epochs."""
    if rows[x].nunique() < 2:
        return []
    lines = []
    for i, task in enumerate(tasks(rows)):
        groups = of(rows, task=task).groupby(x)[y]
        points = [(epoch, *estimate([*values])[:2]) for epoch, values in groups]
        if len(points) > 1:
            xs, means, halves = zip(*([(0.0, 0.0, 0.0)] * from_zero + points))
            lines.append(Series(task, xs, means, category(i), halves))
    return [curves(title, lines, label, f"epochs of fine-tuning {before}".rstrip())]


def movement(tables: Tables) -> Section:
    """Table 2, Fig 4 right, Fig 6."""
    rows, label = tables["movement"], "mean movement (%)"
    whole, dense = of(rows, path="all"), of(rows, variant="dense")
    epochs = _by_epoch("Movement after epochs of fine-tuning", whole, "epochs", "mean", label, from_zero=True)
    printed = published("movement_epochs")
    each = [of(printed, task=task) for task in TASKS]
    lines = [Series(task, [*r["epoch"]], [*r["mean"]], category(i)) for i, (task, r) in enumerate(zip(TASKS, each))]
    grids = [_table2(of(dense, path="all"))] + [_by_kind(dense[dense["path"] != "all"])] * (len(rows) > 0)
    theirs = [curves("Published: movement after each epoch at 5e-5", lines, label, "epoch")]
    ours = [*epochs, *_by_rank(of(tables["movement_rank"], variant="dense"))]
    return Section(ours, theirs, grids, len(epochs), bool(ours))


def _by_rank(rows: Frame) -> list[Figure]:
    """Fig 6."""
    means = rows.groupby("bin")[["before", "after"]].mean()
    if not len(means):
        return []
    x = [(i + 0.5) / len(means) for i in means.index]
    lines = [Series(f"place {side}", x, [*means[side]], category(i), dots=0) for i, side in enumerate(means)]
    label, xlabel = "share of all movement (%)", "place in the order of |w|, lowest first (%)"
    even = (1 / len(means), "even", INK["muted"])
    return [curves("Share of all movement by place in the order", lines, label, xlabel, dashed=[even])]


def _table2(rows: Frame) -> Grid:
    printed, names = published("table2"), tasks(rows) or list(TASKS)
    body: list[list[Cell]] = []
    for rate, at_rate in rows.groupby("learning_rate"):
        cells = [of(at_rate, task=task) for task in names]
        texts = [[with_count(estimate([*c["mean"]]), 2, scale=100), _std(c["std"].mean())] for c in cells]
        body.append([f"{rate:g}", "this study", *texts])
    for rate, at_rate in printed.groupby("learning_rate"):
        cells = [of(at_rate, task=task) for task in names]
        texts = [[fixed(c["mean"].item(), 2, scale=100), _std(c["std"].item())] if len(c) else [] for c in cells]
        body.append([f"{rate:g}", "published", *([*map(Published, lines)] for lines in texts)])
    caption = (
        "Mean movement, % of all places, ± half of the 95 % interval over seeds; std: over the weights. The published "
        "CoLA at 2e-5 comes from a file cut short after 9 of 73 matrices."
    )
    return Grid(caption, ("learning rate", "", *names), body)


def _std(value: float) -> str:
    return f"std {fixed(value, 2, scale=100)}"


def _by_kind(rows: Frame) -> Grid:
    printed, names, body = of(published("movement_matrices"), learning_rate=5e-5), tasks(rows), []
    for kind in sorted(rows["kind"].unique()):
        line: list[Cell] = [kind]
        for task in names:
            means = [of(side, task=task, kind=kind)["mean"].mean() for side in (rows, printed)]
            line.append([fixed(means[0], 2, scale=100), Published(fixed(means[1], 2, scale=100))])
        body.append(line)
    caption = "Movement by kind of matrix, % of all places, mean over layers; second line: published, at 5e-5."
    return Grid(caption, ("matrix", *names), body)


def _per_matrix(rows: Frame) -> Grid:
    ratios = rows.groupby(["path", "target", "against"], sort=False)["ratio"].mean()
    targets, against = sorted(rows["target"].unique()), sorted(rows["against"].unique())
    body = [
        [path, *(" / ".join(fixed(ratios.get((path, t, name)), 2) for name in against) for t in targets)]
        for path in rows["path"].unique()
    ]
    caption = f"Difference of the masks over chance, per matrix, at each sparsity: {' / '.join(against)}."
    return Grid(caption, ("matrix", *map(percent, targets)), body)
