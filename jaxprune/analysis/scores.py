"""The sections about scores: every figure and table of the study beside the published one, from either's tables."""

import math
from collections.abc import Sequence
from typing import Any

from jaxprune.analysis import plots, study
from jaxprune.analysis.contrast import Difference, contrast
from jaxprune.analysis.layout import SPARSITY, Cell, Grid, Picture, Section, cell
from jaxprune.analysis.plots import Series
from jaxprune.analysis.prose import minus, percent
from jaxprune.analysis.statistics import Summary, mean_of, summary, text
from jaxprune.analysis.study import CONDITIONS, NAMES, Tables


def scores(tables: Tables, theirs: Tables) -> Section:
    """Fig 1 and Table 1."""
    about = (
        "Score and training loss after fine-tuning, mean over the tasks that every condition has. Bars: 95 % interval "
        "over seeds; an open dot has none, since a task was fine-tuned with one seed. “Masks lifted” is the paper's "
        "information deletion: the pruned weights are 0 at the start, then all weights train."
    )
    averages, printed = _averages(tables, "this study"), _averages(theirs, "published")
    ours = [*averages, *_per_task(tables)]
    items = ("Fig 1, Table 1", "Fig 1", "Fig 1, sec. 4.3", "Fig 1, sec. 5")
    title = "Scores against sparsity (Fig 1, Table 1)"
    gap, grids = "" if ours else "No fine-tuning run is finished.", [table1(tables, theirs)]
    return Section(title, about, items, ours, printed, len(averages), "", gap, grids)


def shared_tasks(tables: Tables) -> list[str]:
    """The tasks that were scored in every setting without a switch."""
    found = study.cells(tables["runs"], "accuracy")
    settings = {setting for setting, _ in found if setting[1] == study.MAIN.get(setting[0])}
    return [task for task in study.tasks(tables["runs"]) if all((setting, task) in found for setting in settings)]


def _averages(tables: Tables, whose: str) -> list[Picture]:
    out, tasks = [], shared_tasks(tables)
    for column, label in (("accuracy", "dev accuracy (× 100)"), ("train_loss", "training loss (nats)")):
        found = study.cells(tables["runs"], column)
        lines = []
        for color, condition in enumerate(CONDITIONS):
            xs = study.targets(found, condition)
            means = [mean_of([summary(found.get((study.main(condition, x), t), [])) for t in tasks]) for x in xs]
            if xs and tasks:
                halves = [m.half for m in means]
                lines.append(Series(NAMES[condition], xs, [m.mean for m in means], color, halves))
        if lines:
            name = f"{'Accuracy' if column == 'accuracy' else 'Training loss'}, mean over {', '.join(tasks)}"
            title = f"{name}, {whose}"
            picture = plots.curves(lines, label=label, xlabel=SPARSITY, title=title, percent=column == "accuracy")
            out.append((name, picture))
    return out


def _per_task(tables: Tables) -> list[Picture]:
    out, runs = [], tables["runs"]
    for task in study.tasks(runs):
        for column in ("accuracy", "matthews"):
            found = study.cells(runs, column)
            lines = []
            for color, condition in enumerate(CONDITIONS):
                values = {x: found.get((study.main(condition, x), task)) for x in study.targets(found, condition)}
                means = {x: summary(v) for x, v in values.items() if v}
                if means:
                    halves = [m.half for m in means.values()]
                    lines.append(Series(NAMES[condition], [*means], [m.mean for m in means.values()], color, halves))
            if lines:
                title = f"{task}: {'accuracy' if column == 'accuracy' else 'Matthews correlation'}"
                floor = [(0.0, "chance")] if column == "matthews" else _majority(runs, task)
                out.append(
                    (
                        title,
                        plots.curves(
                            lines, label="dev score (× 100)", xlabel=SPARSITY, title=title, percent=True, lines=floor
                        ),
                    )
                )
    return out


def _majority(runs: Any, task: str) -> list[tuple[float, str]]:
    values = [*runs[runs["task"] == task]["majority"].dropna()] if "majority" in runs else []
    return [(float(values[0]), "majority class")] if values else []


def table1(tables: Tables, theirs: Tables) -> Grid:
    """A row per condition and sparsity: accuracy and training loss of each task, ours above the published."""
    sides = [(study.cells(t["runs"], "accuracy"), study.cells(t["runs"], "train_loss")) for t in (tables, theirs)]
    matthews = study.cells(tables["runs"], "matthews")
    names = list(dict.fromkeys([*study.TASKS, *study.tasks(tables["runs"])]))
    tasks, rows = shared_tasks(tables), []
    for condition in CONDITIONS:
        rows.append([cell(condition.replace("_", " "))])
        for x in study.targets(sides[0][0], condition) or study.targets(sides[1][0], condition):
            setting = study.main(condition, x)
            row = [cell(percent(x)), _losses(tables, theirs, condition, x)]
            for task in names:
                row.append(_both(sides, setting, task))
                if task == "CoLA":
                    row.append(_lines(summary(matthews.get((setting, task), []))))
            average = mean_of([summary(sides[0][0].get((setting, t), [])) for t in tasks])
            printed = mean_of([summary(sides[1][0].get((setting, t), [])) for t in study.TASKS])
            rows.append([*row, [*_lines(average), (_plain(printed, 100, 1), True)]])
    head = ["sparsity", "dev loss", *names, "mean"]
    head.insert(head.index("CoLA") + 1, "CoLA Matthews")
    caption = (
        "Dev accuracy × 100 and training loss (nats); ± is half of the 95 % interval over n seeds. Last line: "
        "published accuracy / training loss, one run. Dev loss: of pre-training, nats. The mean is over "
        f"{', '.join(tasks) or 'no task'} here, over five tasks there."
    )
    return Grid(caption, head, rows)


def _lines(value: Summary, loss: float | None = None) -> Cell:
    """`83.1 ± 0.5`, then n and the training loss."""
    if value.n == 0:
        return cell("–")
    said = minus(f"{100 * value.mean:.1f}")
    said += "" if math.isnan(value.half) else f" ± {100 * value.half:.1f}"
    n = f"n = {value.n}" + (", no interval" if math.isnan(value.half) else "")
    return cell(said, n if loss is None else f"{n}, loss {loss:.2f}")


def _losses(tables: Tables, theirs: Tables, condition: str, target: float) -> Cell:
    lines = []
    for side, published in ((tables, False), (theirs, True)):
        variant = study.MAIN[condition] if condition != "after_finetuning" else ""
        rows = side["pretrain"]
        rows = rows[(rows["variant"] == variant) & (rows["target"] == target)] if len(rows) else rows
        lines.append((_plain(summary([*rows["dev_loss"]] if len(rows) else []), 1, 3 - published), published))
    return lines


def _both(sides: Sequence[Any], setting: study.Setting, task: str) -> Cell:
    (accuracy, loss), (printed, printed_loss) = sides
    losses = loss.get((setting, task))
    mine = _lines(summary(accuracy.get((setting, task), [])), summary(losses).mean if losses else None)
    old = "–"
    if (setting, task) in printed:
        old = f"{100 * printed[setting, task][0]:.1f} / {printed_loss[setting, task][0]:.2f}"
    return [*mine, (old, True)]


def _plain(value: Summary, scale: float, digits: int) -> str:
    return "–" if value.n == 0 or math.isnan(value.mean) else f"{scale * value.mean:.{digits}f}"


def transfer(tables: Tables, theirs: Tables) -> Section:
    """Fig 2 left."""
    about = (
        "Accuracy after information deletion (mean over seeds) against the pre-training dev loss of the model it began "
        "from; one point per sparsity, with the least-squares line. A slope is in accuracy points per nat."
    )
    ours, published = (_scatter(t, whose) for t, whose in ((tables, "this study"), (theirs, "published")))
    gap = "" if ours else "No information-deletion run is finished."
    rows = []
    for condition in CONDITIONS:
        for task in study.tasks(tables["runs"]) or study.TASKS:
            for metric in ("accuracy", "matthews"):
                pair = [_line(t["transfer"], condition, task, metric) for t in (tables, theirs)]
                if any(pair):
                    rows.append(
                        [
                            cell(condition.replace("_", " ")),
                            cell(task),
                            cell(metric),
                            *map(cell, _slope(pair[0])),
                            *map(cell, _slope(pair[1])[:2]),
                        ]
                    )
    head = ("condition", "task", "metric", "slope, points per nat", "r", "points", "published slope", "published r")
    grid = Grid(
        "Lines of the score against the pre-training loss; ± is half of the 95 % interval of the slope.", head, rows
    )
    title = "The pre-training loss and transfer (Fig 2 left)"
    return Section(title, about, ("Fig 2 left",), ours, published, len(ours), "", gap, [grid])


def _scatter(tables: Tables, whose: str) -> list[Picture]:
    runs, groups = tables["runs"], []
    if "pretrain_loss" not in runs:
        return []
    some = runs[(runs["condition"] == "information_deletion") & (runs["variant"] == "pruned")]
    for task in study.tasks(some):
        points = some[some["task"] == task].groupby("target")[["pretrain_loss", "accuracy"]].mean().dropna()
        if len(points):
            groups.append((task, points["pretrain_loss"].tolist(), points["accuracy"].tolist()))
    if not groups:
        return []
    name = f"Information deletion, {whose}"
    svg = plots.scatter(groups, label="dev accuracy (× 100)", xlabel="pre-training dev loss (nats)", title=name)
    return [(name, svg)]


def _line(lines: Any, condition: str, task: str, metric: str) -> dict[str, Any] | None:
    if not len(lines):
        return None
    rows = lines[(lines["condition"] == condition) & (lines["task"] == task) & (lines["metric"] == metric)]
    return rows.to_dict("records")[0] if len(rows) else None


def _slope(line: dict[str, Any] | None) -> tuple[str, str, str]:
    if line is None or math.isnan(line["slope"]):
        return "–", "–", "–"
    noise = "no interval" if math.isnan(line["half"]) else f"± {100 * line['half']:.2f}"
    r = "– (constant)" if math.isnan(line["r"]) else f"{line['r']:.3f}"
    texts = (f"{100 * line['slope']:.2f} {noise}", r, str(int(line["n"])))
    slope, r, n = map(minus, texts)
    return slope, r, n


def switches(tables: Tables) -> Section:
    """What the authors could not separate, one change at a time."""
    about = (
        "Each row changes one setting of the condition beside it, at one sparsity, all else equal. Difference: mean "
        "score of the switch minus that of the condition without it, over the tasks that have both (CoLA by Matthews); "
        "± is half of the 95 % interval that seeds leave, with the variance of each task pooled over the study."
    )
    found, losses = study.cells(tables["runs"]), _dev_losses(tables)
    rows = []
    ours = {setting for setting, _ in found if setting[0] in study.MAIN and setting[1] not in study.MAIN.values()}
    for setting in sorted(ours):
        condition, variant, target = setting
        other = study.main(condition, target)
        tasks = [task for task in study.tasks(tables["runs"]) if (setting, task) in found]
        known = contrast(found, setting, other, tasks)
        loss, other_loss = (losses.get((name, target)) for name in (variant, study.MAIN[condition]))
        change = "–" if loss is None or other_loss is None else minus(f"{loss - other_loss:+.3f}")
        parts = [f"{task} {text(summary(found[setting, task]), scale=100)}" for task in tasks]
        labels = (variant, condition.replace("_", " "), percent(target), change, _change(known))
        rows.append([*map(cell, labels), cell(*parts)])
    head = ("switch", "condition", "sparsity", "dev loss, change (one run)", "score, change in points", "scores")
    grids = [Grid("", head, rows)] if rows else []
    gap = "" if rows else "No switch is finished."
    words = "The paper has no such runs."
    return Section("Switches: what the paper could not separate", about, published=words, gap=gap, grids=grids)


def _change(known: Difference | None) -> str:
    if known is None:
        return "–"
    noise = "(one seed, no interval)" if math.isnan(known.noise) else f"± {100 * known.noise:.1f}"
    return minus(f"{100 * known.change:+.1f} {noise}")


def _dev_losses(tables: Tables) -> dict[tuple[str, float], float]:
    rows = tables["pretrain"]
    return {(r["variant"], r["target"]): r["dev_loss"] for r in rows.to_dict("records")} if len(rows) else {}
