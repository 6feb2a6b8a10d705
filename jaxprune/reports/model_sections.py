"""The sections about masks, weights, features and training of the pre-trained models, beside the published numbers."""

from jaxprune.analysis.study_tables import Frame, Tables, of
from jaxprune.reports.charts import Series, block_means, curves, heatmap, ranges
from jaxprune.reports.number_text import NOTHING, fixed, percent, span
from jaxprune.reports.published import published
from jaxprune.reports.section import Cell, Grid, Section, band
from jaxprune.reports.svg import Figure, category

PAPERS_SPARSITY = 0.6
"""That of Fig 4 left."""


def _figures(figures: list[Figure], grids: tuple[Grid, ...] = ()) -> Section:
    return Section(figures, grids=grids, measured=bool(figures))


def features(tables: Tables) -> Section:
    """Fig 2 right."""
    rows, figures = of(tables["features"], variant="pruned"), []
    for name, column in (("cosine", "cosine"), ("linear CKA", "cka")) if len(rows) else ():
        lines = []
        for i, (layer, at_layer) in enumerate([(None, rows), *rows.groupby("layer")][:8]):
            means = at_layer.groupby("target")[column].mean()
            lines.append(Series("mean" if layer is None else f"layer {layer:g}", [*means.index], [*means], category(i)))
        figures.append(curves(f"Similarity to the unpruned model: {name}", lines, name))
    return _figures(figures)


def heads(tables: Tables) -> Section:
    """Fig 4 left."""
    rows, label = of(tables["heads"], variant="pruned"), "pruned (% of a head)"
    rows = rows[rows["target"] > 0]
    if not len(rows):
        return _figures([])
    target = min(map(float, rows["target"]), key=lambda t: abs(t - PAPERS_SPARSITY))
    layers = of(rows, target=target).groupby("layer")["sparsity"]
    bars = [(f"layer {layer:g}", v.mean(), v.min(), v.max()) for layer, v in layers]
    title = f"Heads of each layer at {percent(target)}"
    return _figures(
        [
            curves("Sparsity of the heads", [band("", rows, "sparsity")], label),
            ranges(title, bars, label, line=target),
        ]
    )


def magnitudes(tables: Tables) -> Section:
    """Fig 5."""
    rows, figures = tables["magnitude"], []
    for title, column, label in (
        ("Share of the sum of |w| that is pruned", "abs_share", "share (%)"),
        ("Signed sum of the pruned weights", "signed_sum", "sum of w"),
    ):
        if len(rows):
            figures.append(curves(title, [Series("", [*rows["sparsity"]], [*rows[column]], dots=0)], label))
    return _figures(figures)


def maps(tables: Tables) -> Section:
    """Figs 7 and 8."""
    names, figures = {"key": "Key matrix (Fig 7)", "words": "Word embeddings (Fig 8)"}, []
    for figure, blocks in tables["heatmaps"].groupby("figure"):
        values = blocks.pivot(index="row", columns="column", values="abs_mean")
        figures.append(heatmap(names[figure], values.to_numpy(), top=float(blocks["abs_mean"].quantile(0.995))))
    dense, pruned = (of(tables["tokens"], variant=variant) for variant in ("dense", "pruned"))
    targets, body = sorted(pruned["target"].unique()), []
    for row in dense.to_dict("records"):
        shares = [of(pruned, target=t, group=row["group"])["sparsity"].mean() for t in targets]
        body.append(
            [row["group"], f"{row['rows']:,}", fixed(row["abs_mean"], 4), *(fixed(s, scale=100) for s in shares)]
        )
    head = ("pieces, by letters", "rows", "mean |w|", *(f"at {percent(t)}" for t in targets))
    caption = (
        "Word embeddings by kind of piece: mean |w| of the dense model, and how many per cent are pruned at a sparsity."
    )
    return _figures(figures, (Grid(caption, head, body),))


def spread(tables: Tables) -> Section:
    """Table 3 and the memory breakdown."""
    dense, printed = of(tables["weights"], variant="dense"), published("table3")
    moments = []
    for kind in dict.fromkeys([*dense["kind"], *printed["kind"]]):
        row: list[Cell] = [str(kind)]
        for column, digits in (("mean", 4), ("std", 3)):
            row += [span(of(side, kind=kind)[column], digits) for side in (dense, printed)]
        moments.append(row)
    memory = of(tables["memory"], variant="dense").set_index("part")
    parts = [
        [
            str(row["part"]),
            *(_memory(memory.loc[row["part"]]) if row["part"] in memory.index else [NOTHING, NOTHING]),
            *_memory(row),
        ]
        for _, row in published("memory").iterrows()
    ]
    head = ("matrix", "mean", "published", "std", "published")
    columns = ("part", "weights", "share", "published weights (BERT-Base)", "share")
    grids = [
        Grid("Weights of the dense model (Table 3).", head, moments),
        Grid("Memory by part; attention and feed-forward with LayerNorm and biases.", columns, parts),
    ]
    return Section(grids=grids, measured=len(dense) > 0)


def _memory(row: Frame) -> list[str]:
    return [f"{row['weights']:,.0f}", f"{100 * row['share']:.2f} %"]


def churn(tables: Tables) -> Section:
    """Soft masks."""
    rows, figures = tables["churn"], []
    for column, title in (("regrown", "Weights that came back"), ("newly_pruned", "Weights that went")):
        lines = [
            Series(str(name), [*prunes["step"]], [*(prunes[column] / prunes["size"])], category(i), dots=0)
            for i, (name, prunes) in enumerate(rows.groupby("variant"))
        ]
        if lines:
            figures.append(curves(title, lines, "share of the weights (%)", "step"))
    return _figures(figures)


def losses(tables: Tables) -> Section:
    """Training loss, means of equal stretches."""
    figures = []
    for variant in ("pruned", "random"):
        rows = of(tables["curves"], variant=variant).dropna(subset="loss")
        lines = [
            Series(percent(target), *block_means(points["step"], points["loss"], 60), category(i), dots=0)
            for i, (target, points) in enumerate(rows.groupby("target"))
        ]
        if lines:
            title = f"Loss while pruning and recovering, {variant}"
            figures.append(curves(title, lines, "training loss (nats)", "step"))
    return _figures(figures)
