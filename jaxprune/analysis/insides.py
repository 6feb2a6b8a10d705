"""The sections about masks, weights and features: each figure and table of the study beside the published one."""

import numpy as np

from jaxprune.analysis import plots
from jaxprune.analysis.layout import SPARSITY, Grid, Section, band, cell, mean_over, section, span
from jaxprune.analysis.plots import Series
from jaxprune.analysis.prose import percent
from jaxprune.analysis.published import published
from jaxprune.analysis.study import Tables, of_variant


def features(tables: Tables) -> Section:
    """Fig 2 right."""
    about = (
        "Hidden states on held-out text against those of the same model trained on without pruning: mean cosine of the "
        "two vectors of a token, and linear CKA, which does not mind a rotation. The embeddings' output is layer 0."
    )
    rows, ours = of_variant(tables["features"], "pruned"), []
    if len(rows):
        for name, column in (("cosine", "cosine"), ("linear CKA", "cka")):
            lines = [
                Series("mean" if layer is None else f"layer {layer:g}", *mean_over(some, "target", column), i)
                for i, (layer, some) in enumerate([(None, rows), *rows.groupby("layer")][:8])
            ]
            title = f"Similarity to the unpruned model: {name}"
            ours.append((title, plots.curves(lines, label=name, xlabel=SPARSITY, title=title)))
    words = "The values of Fig 2 right are printed nowhere: the paper shows the cosine falling as the loss rises."
    return section("Features (Fig 2 right)", about, ("Fig 2 right",), ours, words, "No pruned model is finished.")


def heads(tables: Tables) -> Section:
    """Fig 4 left."""
    about = (
        "Share pruned of the weights of each attention head: its columns of query, key and value and its rows of the "
        "output matrix. Band: lowest to highest head. The second figure has the layers at one sparsity."
    )
    rows, ours = of_variant(tables["heads"], "pruned"), []
    if len(rows := rows[rows["target"] > 0] if len(rows) else rows):
        title = "Sparsity of the heads"
        ours.append(
            (
                title,
                plots.curves(
                    [band("", rows, "sparsity", 0)],
                    label="pruned (% of a head)",
                    xlabel=SPARSITY,
                    title=title,
                    percent=True,
                ),
            )
        )
        target = min(rows["target"].unique(), key=lambda t: abs(t - 0.6))
        some = rows[rows["target"] == target].groupby("layer")["sparsity"]
        spans = [(f"layer {layer}", v.mean(), v.min(), v.max()) for layer, v in some]
        title = f"Heads of each layer at {percent(target)}"
        ours.append((title, plots.bars(spans, label="pruned (% of a head)", title=title, line=float(target))))
    words = "In words only: at 60 % sparsity every head of BERT-Base is between 55 and 65 % pruned."
    return section("Attention heads (Fig 4 left)", about, ("Fig 4 left",), ours, words, "No pruned model is finished.")


def magnitudes(tables: Tables) -> Section:
    """Fig 5."""
    about = (
        "What a one-shot cut of the dense model takes away: the sum of |w| of the pruned weights, as a share of that "
        "of all prunable weights, and their signed sum."
    )
    rows, ours = tables["magnitude"], []
    if len(rows):
        for title, column, fraction in (
            ("Share of the sum of |w| that is pruned", "abs_share", True),
            ("Signed sum of the pruned weights", "signed_sum", False),
        ):
            label = "share (%)" if fraction else "sum of w"
            line = Series("", rows["sparsity"].tolist(), rows[column].tolist(), points=False)
            ours.append((title, plots.curves([line], label=label, xlabel=SPARSITY, title=title, percent=fraction)))
    words = "The values of Fig 5 are printed nowhere; the paper finds it odd that so large a sum can go unnoticed."
    return section("Magnitudes that are pruned (Fig 5)", about, (), ours, words, "The dense model is not finished.")


def maps(tables: Tables) -> Section:
    """Figs 7 and 8."""
    about = (
        "Mean |w| of the dense model in blocks, darker is larger. Left, a key matrix with its outputs down, so that "
        "heads are horizontal bands; right, the word embeddings in the order of the vocabulary. Its first rows are "
        "[unused] pieces that no text ever trains, so the table tells them apart before it looks at length."
    )
    rows, ours, grids = tables["heatmaps"], [], []
    names = {"key": "Key matrix (Fig 7)", "words": "Word embeddings (Fig 8)"}
    for figure, some in rows.groupby("figure") if len(rows) else ():
        values = some.pivot(index="row", columns="column", values="abs_mean").to_numpy()
        ours.append((names[figure], plots.heat(values, title=names[figure], top=float(np.quantile(values, 0.995)))))
    if len(tokens := tables["tokens"]):
        dense = tokens[tokens["variant"] == "dense"]
        pruned = tokens[tokens["variant"] == "pruned"]
        targets = sorted(pruned["target"].unique())
        body = []
        for row in dense.to_dict("records"):
            shares = [pruned[(pruned["target"] == t) & (pruned["group"] == row["group"])]["sparsity"] for t in targets]
            body.append(
                [
                    cell(row["group"]),
                    cell(f"{row['rows']:,}"),
                    cell(f"{row['abs_mean']:.4f}"),
                    *(cell(f"{100 * s.mean():.1f}") for s in shares),
                ]
            )
        head = ("pieces, by letters", "rows", "mean |w|, dense", *(f"pruned at {percent(t)}, %" for t in targets))
        grids.append(Grid("Rows of the word embeddings by kind of piece.", head, body))
    words = "The paper shows pictures without values: bands by head in Fig 7, smaller top rows in Fig 8."
    return section(
        "Where the magnitude is (Figs 7 and 8)",
        about,
        ("Fig 8",),
        ours,
        words,
        "The dense model is not finished.",
        grids,
    )


def spread(tables: Tables) -> Section:
    """Table 3 and the memory breakdown."""
    about = (
        "Mean and standard deviation of the dense model's matrices by kind, lowest to highest over layers, and where "
        "its weights are."
    )
    printed = published("table3")
    dense, body = of_variant(tables["weights"], "dense"), []
    kinds = list(dict.fromkeys([*(dense["kind"] if len(dense) else ()), *(row["kind"] for row in printed)]))
    for kind in kinds:
        some = dense[dense["kind"] == kind] if len(dense) else dense
        theirs = [row for row in printed if row["kind"] == kind]
        row = [cell(str(kind))]
        for column, digits in (("mean", 4), ("std", 3)):
            row.append(cell(span([*some[column]] if len(some) else [], digits)))
            row.append(cell(span([r[column] for r in theirs], digits)))
        body.append(row)
    head = ("matrix", "mean", "published", "std", "published")
    parts, memory = [], of_variant(tables["memory"], "dense")
    for row in published("memory"):
        mine = memory[memory["part"] == row["part"]].to_dict("records") if len(memory) else []
        ours = [f"{mine[0]['weights']:,.0f}", f"{100 * mine[0]['share']:.2f} %"] if mine else ["–", "–"]
        parts.append(
            [
                cell(str(row["part"])),
                *map(cell, ours),
                cell(f"{row['weights']:,.0f}"),
                cell(f"{100 * row['share']:.2f} %"),
            ]
        )
    columns = ("part", "weights", "share", "published weights (BERT-Base)", "share")
    grids = [
        Grid("Weights of the dense model (Table 3).", head, body),
        Grid("Memory by part; attention and feed-forward with biases and LayerNorm.", columns, parts),
    ]
    gap = "" if len(dense) else "The dense model is not finished."
    return Section("Weights and memory (Table 3, sec. 3.1)", about, ("Table 3", "sec. 3.1, 6"), gap=gap, grids=grids)


def churn(tables: Tables) -> Section:
    """Soft masks."""
    about = "Soft masks are made anew from the dense values under them: how many weights each prune brought back."
    rows, ours = tables["churn"], []
    if len(rows):
        for column, title in (("regrown", "Weights that came back"), ("newly_pruned", "Weights that went")):
            lines = [
                Series(str(name), some["step"].tolist(), (some[column] / some["size"]).tolist(), i, points=False)
                for i, (name, some) in enumerate(rows.groupby("variant"))
            ]
            ours.append(
                (
                    title,
                    plots.curves(
                        lines,
                        label="share of the weights (%)",
                        xlabel="step",
                        title=title,
                        percent=True,
                        xpercent=False,
                    ),
                )
            )
    words = "The paper's code has soft masks that are refreshed for ever; it reports no counts."
    return section("Churn of soft masks", about, (), ours, words, "No run recorded how its masks changed.")


def curves(tables: Tables) -> Section:
    """Training loss."""
    about = (
        "Pre-training loss over the steps of pruning and recovery, means of equal stretches, one curve per sparsity."
    )
    rows, ours = tables["curves"], []
    for variant in ("pruned", "random"):
        some = of_variant(rows, variant)
        some = some.dropna(subset="loss") if len(some) else some
        if len(some):
            lines = []
            for i, (target, points) in enumerate(some.groupby("target")):
                blocks = np.array_split(points[["step", "loss"]].to_numpy(), min(len(points), 60))
                means = np.array([block.mean(0) for block in blocks])
                lines.append(Series(percent(target), means[:, 0].tolist(), means[:, 1].tolist(), i, points=False))
            title = f"Loss while pruning and recovering, {variant}"
            ours.append(
                (title, plots.curves(lines, label="training loss (nats)", xlabel="step", title=title, xpercent=False))
            )
    words = "The paper prints no curves; its evaluation levelled out 20,000 steps after pruning began (footnote 10)."
    return section("Training curves", about, (), ours, words, "No run is finished.")
