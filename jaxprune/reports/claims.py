"""What the paper claims, and whether a study's tables bear it out: holds, fails, or cannot tell and why."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxprune.analysis.intervals import Estimate, Frame, difference, shared_tasks
from jaxprune.analysis.pruning_cost import FITTING, FREE, Level, PruningCost, pruning_cost
from jaxprune.analysis.regression import lack_of_fit
from jaxprune.analysis.study_tables import (
    UNTUNED,
    Tables,
    complete,
    of,
    seeded,
    setting_of,
    targets,
    tasks,
    trained,
    with_unpruned,
)
from jaxprune.reports.number_text import fixed, percent, span, with_noise

Status = Literal["holds", "fails", "cannot tell"]
HOLDS, FAILS, UNKNOWN = "holds", "fails", "cannot tell"
Answer = tuple[Status, str]
"""The judgement, and the numbers it rests on or what is missing."""

STRAIGHT = 0.9
"""The share of variance that a line must explain to be called one."""
BERT_BASE = 110_000_000
"""Its weights, about, with the heads of pre-training."""
NO_WEIGHTS = "no weights of a fine-tuned dense model were kept"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One claim and its judgement."""

    item: str
    """Where the paper makes it: a figure, table or section."""
    claim: str
    status: Status
    why: str
    table: str
    """The table it is read from."""
    asked: bool = True
    """Whether the study measured what the claim is about at all."""


class CannotTell(Exception):
    """What is missing."""


def judge(tables: Tables) -> list[Verdict]:
    """All claims in the order of the paper; a table that is missing or too thin makes a `cannot tell` that says so."""
    verdicts, tables = [], complete(tables)
    for item, claim, table, rule in CLAIMS:
        asked = True
        try:
            status, why = rule(tables)
        except CannotTell as missing:
            status, why, asked = UNKNOWN, str(missing), False
        verdicts.append(Verdict(item, claim, status, why, table, asked))
    return verdicts


def _needed(rows: Any, missing: str, least: int = 1) -> Any:
    """`rows` if there are enough."""
    if len(rows) < least:
        raise CannotTell(missing)
    return rows


def pruned_cost(tables: Tables) -> PruningCost:
    """What the sparsities of the condition `pruned` cost, each task by its own metric."""
    for name in ("runs", "pretrain"):
        _needed(tables[name], "no fine-tuning run of a pruned model is finished")
    losses = _needed(of(tables["pretrain"], variant="pruned"), "no model pruned while pre-training is finished")
    runs = trained(tables["runs"])
    # Always answering the commonest class correlates with nothing.
    correlations = runs["metric"].isin(["matthews", "pearson", "spearman"])
    runs = runs.assign(majority=runs["majority"].mask(correlations, 0.0))
    judged = (runs["condition"] == "pruned") & (runs["variant"] == "pruned")
    return pruning_cost(losses, runs[judged], runs[~judged])


def _levels(tables: Tables) -> tuple[PruningCost, Sequence[Level]]:
    cost = pruned_cost(tables)
    return cost, _needed(() if cost.why else cost.levels, cost.why)


def _free(tables: Tables) -> Answer:
    cost, levels = _levels(tables)
    visible = f"; the seeds can show {_size(cost.visible)}, and {_size(cost.matters())} counts as one"
    measured = [level.target for level in levels if 0.3 <= level.target <= 0.4]
    first = min(_needed(measured, "no sparsity from 30 % to 40 % was measured"))
    numbers = "; ".join(
        f"{percent(v.target)}: {_points(v.score)} points, dev loss {fixed(v.dev_loss_change, 3, sign=True)} nats"
        for v in levels
        if 0 < v.target <= 0.4
    )
    low = [level for level in levels if level.target <= first]
    if any(level.regime not in (FREE, None) for level in low):
        return FAILS, f"{numbers}{visible}"
    if unknown := [level.why for level in low if level.regime is None]:
        return UNKNOWN, f"{numbers}; {unknown[0]}{visible}"
    return HOLDS, f"{numbers}: free up to {percent(cost.free_up_to)}{visible}"


def _fitting(tables: Tables) -> Answer:
    _, levels = _levels(tables)
    high = _needed([level for level in levels if level.target >= 0.7], "no sparsity of 70 % or more was measured")
    numbers = "; ".join(
        f"{percent(level.target)}: training loss {with_noise(level.train_loss, 3, sign=True)} nats"
        for level in high
        if level.train_loss is not None
    )
    if any(level.regime == FITTING for level in high):
        return HOLDS, numbers
    if all(level.regime is None for level in high):
        return UNKNOWN, f"{numbers}; {high[0].why}"
    return FAILS, numbers


def _linear(tables: Tables) -> Answer:
    rows = of(tables["transfer"], condition="information_deletion", metric="accuracy")
    if names := pruned_cost(tables).tasks:  # elsewhere nothing was learned that a loss could predict
        rows = rows[rows["task"].isin(names)]
    lines = _needed(rows, "no information-deletion run has a pre-training loss beside it").to_dict("records")
    answers = [_falls(line, tables["runs"]) for line in lines]
    held, failed, unknown = (answers.count(status) for status in (HOLDS, FAILS, UNKNOWN))
    names = [f"{line['task']} {_correlation(line['r'])}" for line in lines]
    numbers = f"{', '.join(names)}; a falling line on {held} of {len(answers)} tasks"
    if max(line["n"] for line in lines) < 4:
        return UNKNOWN, f"{numbers}; fewer than four sparsities"
    if 2 * failed >= len(answers):
        return FAILS, numbers
    if 4 * held >= 3 * len(answers):
        return HOLDS, numbers
    return UNKNOWN, f"{numbers}, {failed} clearly none, {unknown} too noisy"


def _correlation(r: float) -> str:
    return "always scores the same" if math.isnan(r) else f"r = {fixed(r, 3)}"


def _falls(line: dict[Any, Any], runs: Frame) -> Status:
    """Whether one task's scores lie on a falling line."""
    slope, half, r2 = line["slope"], line["half"], line["r"] ** 2
    if line["n"] < 4 or math.isnan(half) or math.isnan(r2):
        return UNKNOWN
    if slope - half > 0:
        return FAILS
    if slope + half < 0 and r2 >= STRAIGHT:
        return HOLDS
    points = of(with_unpruned(runs), condition="information_deletion", variant="pruned", task=line["task"])
    points = points.dropna(subset=["pretrain_loss", "accuracy"])
    curvature = lack_of_fit(*([*points[column]] for column in ("pretrain_loss", "accuracy", "target")))
    return FAILS if curvature < 0.05 and r2 < STRAIGHT else UNKNOWN


class Change(NamedTuple):
    """What a condition scores against `pruned` at one sparsity."""

    size: Estimate
    matters: float
    """The least change, over the same tasks, that counts."""

    @property
    def better(self) -> bool:
        """Whether it is both larger than the noise and large enough to count."""
        return self.size.low > 0 and self.size.mean >= self.matters

    @property
    def none(self) -> bool:
        """Whether it and its interval lie within twice what counts."""
        return abs(self.size.mean) + self.size.half < 2 * self.matters


def _against_pruned(tables: Tables, condition: str, words: str) -> tuple[dict[float, Change], str]:
    """{target: condition - pruned} over the tasks with seeds and something to lose, and that as text."""
    values = seeded(trained(tables["runs"]))
    shared = sorted({*targets(values, condition)} & {*targets(values, "pruned")} - {0.0})
    _needed(shared, f"no sparsity was measured for both {condition.replace('_', ' ')} and pruned")
    cost = pruned_cost(tables)
    names, changes, texts = _needed(cost.tasks, cost.why), {}, []
    for target in shared:
        pair = setting_of(condition, target), setting_of("pruned", target)
        tasks = shared_tasks(values, *pair, names)
        if (size := difference(values, *pair, tasks)) is not None:
            changes[target] = Change(size, cost.matters(tasks))
            over = "" if len(tasks) == len(names) else f" ({', '.join(tasks)})"
            texts.append(f"{percent(target)}{over}: {_points(size)}")
    _needed(changes, "no task was scored in both")
    return changes, f"{words}, points: {'; '.join(texts)}; {_size(cost.matters())} counts as one"


def _tuned_first(tables: Tables) -> Answer:
    changes, numbers = _against_pruned(tables, "after_finetuning", "tuned first against pruned")
    if any(change.better for change in changes.values()):
        return FAILS, numbers
    return (HOLDS if all(change.size.high < 2 * change.matters for change in changes.values()) else UNKNOWN), numbers


def _deletion(tables: Tables) -> Answer:
    changes, numbers = _against_pruned(tables, "information_deletion", "masks lifted against kept")
    low = [change for t, change in changes.items() if t <= 0.6]
    high = [change for t, change in changes.items() if t >= 0.8]
    for side in (low, high):
        _needed(side, "needs a sparsity up to 60 % and one from 80 % on")
    if any(change.better for change in low) or all(change.size.high < change.matters for change in high):
        return FAILS, numbers
    calm = all(change.none for change in low)
    return (HOLDS if calm and any(change.better for change in high) else UNKNOWN), numbers


def _random(tables: Tables) -> Answer:
    changes, numbers = _against_pruned(tables, "random", "random against pruned")
    if all(change.size.high < 0 for change in changes.values()):
        return HOLDS, numbers
    return (FAILS if any(change.size.low > 0 for change in changes.values()) else UNKNOWN), numbers


def _drift(tables: Tables) -> Answer:
    means = of(tables["features"], variant="pruned").groupby("target")["cosine"].mean()
    _needed(means, "features were compared at fewer than three sparsities", 3)
    numbers = ", ".join(f"{percent(target)}: {value:.3f}" for target, value in means.items())
    falls = (means.diff().dropna() <= 0.005).all() and means.iloc[-1] < means.iloc[0] - 0.01
    return (HOLDS if falls else FAILS), f"mean cosine {numbers}"


def _masks(tables: Tables) -> Answer:
    rows = _needed(of(tables["distance"], path="all", variant="dense"), NO_WEIGHTS)
    numbers = "; ".join(
        f"against {against}: {_range(compared['hamming'])} of the weights, {span(compared['ratio'], 2)} of chance"
        for against, compared in rows.groupby("against")
    )
    return (FAILS if (rows["hamming"] >= 0.06).any() else HOLDS), numbers


def _longer(tables: Tables) -> Answer:
    distance, runs = of(tables["distance"], path="all", against=UNTUNED), trained(tables["runs"])
    tuned = runs.dropna(subset="tuned_epochs") if len(distance) else ()
    tuned = _needed(tuned, "no model was cut after fine-tuning")
    target = float(tuned.groupby("target")["tuned_epochs"].nunique().idxmax())
    tuned = of(tuned, target=target)
    epochs = tuned[tuned["variant"].isin(["dense", *distance["variant"]])].groupby("variant")["tuned_epochs"].first()
    settings = {float(count): ("after_finetuning", str(variant), target) for variant, count in epochs.items()}
    _needed(settings, "every cut came after the same number of epochs", 2)
    first, last, values, cost = min(settings), max(settings), seeded(runs), pruned_cost(tables)
    shared = [task for task in tasks(tuned) if all((setting, task) in values for setting in settings.values())]
    shared = _needed([task for task in shared if task in cost.leads], cost.why or "no task has something to lose")
    masks = of(distance, target=target, epochs=last)
    masks = masks[masks["task"].isin(shared)]["hamming"]
    shared = shared_tasks(values, settings[last], settings[first], shared)
    change = difference(values, settings[last], settings[first], shared)
    if change is None or masks.empty:
        raise CannotTell("no task was scored after both the fewest and the most epochs")
    numbers = (
        f"cut at {percent(target)} after {last:g} epochs: masks differ in {_range(masks)} of the weights from the "
        f"dense model's; {_points(change)} points against {first:g} ({', '.join(shared)})"
    )
    matters = cost.matters(shared)
    if masks.max() >= 0.06 or (abs(change.mean) > change.half and abs(change.mean) >= matters):
        return FAILS, numbers
    return (HOLDS if Change(change, matters).none else UNKNOWN), numbers


def _moves(tables: Tables) -> Answer:
    means = of(tables["movement"], path="all", variant="dense").groupby("task")["mean"].max()
    numbers = ", ".join(f"{task} {100 * value:.2f} %" for task, value in _needed(means, NO_WEIGHTS).items())
    return (HOLDS if means.max() < 0.045 else FAILS), f"{numbers} of all places (random orders: 33.3 %)"


def _large_stay(tables: Tables) -> Answer:
    rows = _needed(of(tables["movement_rank"], variant="dense"), NO_WEIGHTS)
    top = rows[rows["bin"] >= 80].groupby(["task", "learning_rate", "seed"])["before"].sum()
    numbers = f"the largest fifth makes {_range(top)} of all movement (n = {len(top)} runs; an even share is 20 %)"
    if (top < 0.2).all():
        return HOLDS, numbers
    return (FAILS if (top > 0.2).all() else UNKNOWN), numbers


def _heads(tables: Tables) -> Answer:
    rows = of(tables["heads"], variant="pruned")
    rows = _needed(rows[rows["target"] > 0], "no pruned model is finished")
    near = rows[(rows["target"] - 0.6).abs() <= 0.11]
    target = min(_needed(near, "no sparsity near 60 % was measured")["target"], key=lambda t: abs(t - 0.6))
    shares = of(near, target=target)["sparsity"]
    numbers = f"at {percent(target)} the {len(shares)} heads lie at {_range(shares)}"
    return (HOLDS if (shares - target).abs().max() < 0.05 else FAILS), numbers


def _spread(tables: Tables) -> Answer:
    rows = _needed(of(tables["weights"], variant="dense"), "the weights of the dense model were not measured")
    std, mean = rows["std"], (rows["mean"] / rows["std"]).abs()
    numbers = f"std {std.min():.3f} to {std.max():.3f} over {len(rows)} matrices; largest |mean| / std {mean.max():.2f}"
    return (HOLDS if std.between(0.025, 0.05).all() else FAILS), numbers


def _short_tokens(tables: Tables) -> Answer:
    rows = of(_needed(tables["tokens"], "the word embeddings were not measured"), variant="dense")
    means = rows.set_index("group")["abs_mean"]
    lengths = [name for name in ("1 character", "2-3", "4-6", "7 or more") if name in means]
    _needed(lengths, "the vocabulary has too few lengths of tokens", 3)
    numbers = ", ".join(f"{name} {means[name]:.4f}" for name in ("[unused]", *lengths) if name in means)
    return (HOLDS if all(np.diff(means[lengths]) > 0) else FAILS), f"mean |w| by letters: {numbers}"


def _memory(tables: Tables) -> Answer:
    rows = _needed(of(tables["memory"], variant="dense"), "the dense model was not measured")
    share = rows.set_index("part")["share"]
    words, layers = (float(share.get(part, 0.0)) for part in ("word embeddings", "feed-forward"))
    numbers = f"word embeddings {100 * words:.1f} %, with the feed-forward layers {100 * (words + layers):.1f} %"
    if abs(words - 0.2129) < 0.01 and abs(words + layers - 0.7277) < 0.01:
        return HOLDS, f"{numbers} of the weights here"
    base = abs(rows["weights"].sum() / BERT_BASE - 1) < 0.05
    return (FAILS if base else UNKNOWN), f"{numbers} of the weights here{'' if base else ', another shape of model'}"


def _range(fractions: Frame) -> str:
    return f"{span(fractions, 1, scale=100)}\N{NO-BREAK SPACE}%"


def _size(change: float) -> str:
    return f"a change of {fixed(change, scale=100)} points"


def _points(change: Estimate | None) -> str:
    return "no score" if change is None else with_noise(change, scale=100, sign=True, alone="no interval")


CLAIMS: Sequence[tuple[str, str, str, Callable[[Tables], Answer]]] = (
    ("Fig 1, Table 1", "30–40 % is free: pruned so far while pre-training, the tasks' scores stay.", "runs", _free),
    ("Fig 1, Table 1", "At 70 % and more the tasks' own training data are fitted less well, too.", "runs", _fitting),
    ("Fig 1", "Magnitude matters: random pruning costs more at the same sparsity.", "runs", _random),
    ("Fig 1, sec. 4.3", "Lifting the masks changes nothing up to 60 % and helps at high sparsity.", "runs", _deletion),
    (
        "Fig 2 left",
        "The pre-training loss predicts scores after information deletion linearly.",
        "transfer",
        _linear,
    ),
    ("Fig 2 right", "Features drift from the dense model's the more is pruned.", "features", _drift),
    ("Fig 1, sec. 5", "Fine-tuning first does not improve prunability: scores are no better.", "runs", _tuned_first),
    ("Fig 3", "Fine-tuning first prunes almost the same weights: masks differ by less than 6 %.", "distance", _masks),
    ("Fig 3 bottom", "Fine-tuning for longer before the cut changes neither masks nor scores.", "distance", _longer),
    ("Table 2, Fig 4 right", "Fine-tuning moves weights by 0–4 % in the sort order on average.", "movement", _moves),
    ("Fig 4 left", "Heads are pruned evenly: at 60 % each within 5 points.", "heads", _heads),
    ("Fig 6", "High-magnitude weights move less.", "movement_rank", _large_stay),
    ("Fig 8", "Short pieces have smaller word embeddings, [unused] rows left out.", "tokens", _short_tokens),
    ("Table 3", "Weights are centred on 0 with a standard deviation of 0.03–0.05.", "weights", _spread),
    ("sec. 3.1, 6", "Word embeddings hold 21 % of the weights, with the feed-forward layers 72 %.", "memory", _memory),
)
"""(where, claim, table, rule). A claim is one function and one line here."""
