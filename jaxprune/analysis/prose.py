"""The words of the report: every sentence and number of the verdict, made from the measurements."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.regimes import FITTING, FREE, INFORMATION, Level, Regimes, Row, cells

NAMES = {FREE: "Free", INFORMATION: "Knowledge lost", FITTING: "Fitting hampered", None: "Cannot tell"}


def headline(verdict: Regimes) -> str:
    """The verdict in one sentence."""
    if verdict.why:
        return f"Cannot tell what pruning costs: {verdict.why}."
    if len(verdict.levels) < 2:
        return "Only the unpruned model was measured."
    unknown = verdict.span(None)
    free = verdict.free_up_to
    lost, fitting = verdict.span(INFORMATION), verdict.span(FITTING)
    parts = []
    if free > 0:
        parts.append(f"pruning up to {percent(free)} is free within the noise")
    elif verdict.levels[1].regime in (INFORMATION, FITTING):
        parts.append(f"no sparsity measured is free: {percent(verdict.levels[1].target)} already costs score")
    if lost and (free > 0 or len(verdict.levels) > 2):
        parts.append(f"{_range(lost, verdict)} {'loses' if len(lost) == 1 else 'lose'} pre-training knowledge")
    if fitting:
        parts.append(
            f"{_range(fitting, verdict)} also {'hampers' if len(fitting) == 1 else 'hamper'} fitting the tasks"
        )
    if unknown:
        parts.append(f"about {listed(unknown)} the seeds do not tell")
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def explanation(verdict: Regimes, runs: Sequence[Row]) -> tuple[str, str]:
    """Two paragraphs: what the paper found, and what was measured here and how surely."""
    paper = (
        "Weights are set to zero while the model is being pre-trained, so that the rest can adapt. "
        "Gordon, Duh and Andrews (2020) found three regimes in BERT. Up to 30–40\N{NO-BREAK SPACE}% sparsity nothing "
        "changes: pre-training loss and task scores stay. Beyond, the pre-training loss rises and the tasks miss what "
        "pre-training would have taught. At high sparsity, in addition, the model can no longer fit the tasks' own "
        "training data."
    )
    if len(verdict.levels) < 2 or math.isnan(verdict.levels[0].dev_loss_change):
        return paper, f"Here: {headline(verdict)}"
    first, last = verdict.levels[0], verdict.levels[-1]
    here = (
        f"Here the pre-training dev loss goes from {first.dev_loss:.3f} nats unpruned to {last.dev_loss:.3f} at "
        f"{percent(last.target)} sparsity."
    )
    if last.score is not None:
        here += f" At {percent(last.target)} the mean task score changes by {_points(last)}"
        here += f" and the tasks' training loss by {_nats(last)}." if last.train_loss is not None else "."
    if verdict.why:
        return paper, f"{here} A verdict is not possible: {verdict.why}."
    here += (
        " A change counts if it is larger than what the fine-tuning seeds leave open (95 %); the unpruned model leads "
        f"the majority line by {100 * verdict.lead:.1f} points, so that much can be lost."
    )
    if verdict.left_out:
        verb = "does" if len(verdict.left_out) == 1 else "do"
        here += f" {', '.join(verdict.left_out)} {verb} not count: the unpruned model does not beat the majority there."
    targets = [run["target"] for run in runs]
    if len(set(targets)) == len(targets):
        here += " Each sparsity was pre-trained once, so chance in pre-training itself is not covered."
    return paper, here


def cards(verdict: Regimes, scores: Sequence[Row]) -> list[dict[str, Any]]:
    """The regimes with their measured numbers; `cannot tell` only if it occurs."""
    means = cells(scores, "score")
    majority = {str(s["task"]): float(s["majority"]) for s in scores if s.get("majority") is not None}
    what = {
        FREE: "Task scores stay, within the noise of the seeds.",
        INFORMATION: "Scores fall while the tasks are still fitted: what pre-training taught is missing.",
        FITTING: "Scores fall, and the tasks' own training data are fitted less well.",
        None: "The seeds differ by too much for a verdict.",
    }
    out = []
    for regime in (FREE, INFORMATION, FITTING, None):
        levels = [level for level in verdict.levels if level.regime == regime]
        pruned = [level for level in levels if level.target > 0]
        if regime is None and not levels:
            continue
        lines = []
        for level in pruned:
            text = f"{percent(level.target)}: dev loss {minus(f'{level.dev_loss_change:+.3f}')} nats"
            text += f", score {_points(level)}" if level.score else ""
            text += f", training loss {_nats(level)}" if level.train_loss else ""
            floor = [
                t for t in verdict.tasks if t in majority and np.mean(means.get((level.target, t), 9)) <= majority[t]
            ]
            text += f"; {', '.join(floor)} no better than the majority class" if floor else ""
            lines.append(text + (f" ({level.why})" if level.why else ""))
        if not pruned:
            lines = ["Nothing measured here falls into this regime."]
        range_ = _range([level.target for level in levels], verdict) if pruned else "not seen"
        out.append(
            {"number": regime or "?", "name": NAMES[regime], "range": range_, "what": what[regime], "lines": lines}
        )
    return out


def level_row(level: Level) -> list[str]:
    change = (
        "" if level.target == 0 or math.isnan(level.dev_loss_change) else f" ({minus(f'{level.dev_loss_change:+.3f}')})"
    )
    return [
        percent(level.target),
        f"{level.dev_loss:.3f}{change}",
        "–" if level.score is None or level.target == 0 else _points(level),
        "–" if level.train_loss is None or level.target == 0 else _nats(level),
        "unpruned" if level.target == 0 else NAMES[level.regime] + (f": {level.why}" if level.why else ""),
    ]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}\N{NO-BREAK SPACE}%"


def listed(targets: Sequence[float]) -> str:
    names = [percent(t) for t in targets]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _range(targets: Sequence[float], verdict: Regimes) -> str:
    """A stretch of neighbouring measured targets in short: `up to 50 %`, `70 % to 90 %`."""
    every = [level.target for level in verdict.levels]
    stretch = every[every.index(targets[0]) :][: len(targets)] == list(targets)
    if stretch and targets[0] == 0:
        return f"up to {percent(targets[-1])}" if len(targets) > 1 else percent(0.0)
    return f"{percent(targets[0])} to {percent(targets[-1])}" if stretch and len(targets) > 2 else listed(targets)


def _points(level: Level) -> str:
    assert level.score is not None
    noise = "" if math.isnan(level.score.noise) else f" ± {100 * level.score.noise:.1f}"
    return minus(f"{100 * level.score.change:+.1f}{noise} points")


def _nats(level: Level) -> str:
    assert level.train_loss is not None
    noise = "" if math.isnan(level.train_loss.noise) else f" ± {level.train_loss.noise:.3f}"
    return minus(f"{level.train_loss.change:+.3f}{noise} nats")


def minus(text: str) -> str:
    """`text` with a minus sign for each hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")
