"""What the paper claims, and whether a study's tables bear it out: holds, fails, or cannot tell and why."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxprune.analysis import study
from jaxprune.analysis.contrast import contrast
from jaxprune.analysis.prose import minus
from jaxprune.analysis.regimes import FITTING, FREE, Regimes, regimes
from jaxprune.analysis.study import Frame, Tables, of_variant

Status = Literal["holds", "fails", "cannot tell"]
HOLDS, FAILS, UNKNOWN = "holds", "fails", "cannot tell"

MATTERS = 0.01
"""A change of less than one point of the mean score counts as none."""
LINE = 0.9
"""The share of variance that a line must explain to be called one."""


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


def judge(tables: Tables) -> list[Verdict]:
    """All claims in the order of the paper; a table that is missing or too thin makes a `cannot tell` that says so."""
    return [Verdict(item, claim, *rule(tables), table) for item, claim, table, rule in CLAIMS]


Answer = tuple[Status, str]


def pruned_regimes(tables: Tables) -> Regimes:
    """The regimes of the condition `pruned`, each task by its own metric."""
    runs, pretrain = tables["runs"], tables["pretrain"]
    if runs.empty or pretrain.empty:
        return Regimes((), "no fine-tuning run of a pruned model is finished")
    some = runs[(runs["condition"] == "pruned") & (runs["variant"] == "pruned")]
    losses = pretrain[pretrain["variant"] == "pruned"]
    if losses.empty:
        return Regimes((), "no model pruned while pre-training is finished")
    rows = [{**r, "majority": _floor(r)} for r in some.to_dict("records")]
    return regimes(losses.to_dict("records"), rows)  # pyright: ignore[reportArgumentType]


def _floor(row: dict[Any, Any]) -> float | None:
    """The score of always answering the commonest class, in the row's metric."""
    if row["metric"] in ("matthews", "pearson", "spearman"):
        return 0.0
    majority = row.get("majority")
    return None if majority is None or math.isnan(majority) else majority


def _free(tables: Tables) -> Answer:
    found = pruned_regimes(tables)
    if found.why:
        return UNKNOWN, found.why
    levels = [level for level in found.levels if 0 < level.target <= 0.4]
    if not any(level.target >= 0.3 for level in levels):
        return UNKNOWN, "no sparsity from 30 % to 40 % was measured"
    said = "; ".join(
        f"{_percent(v.target)}: {_points(v.score)} points, dev loss {v.dev_loss_change:+.3f} nats" for v in levels
    )
    if any(level.regime not in (FREE, None) and level.target <= 0.3 for level in levels):
        return FAILS, said
    if any(level.regime is None for level in levels if level.target <= 0.3):
        return UNKNOWN, f"{said}; {next(level.why for level in levels if level.regime is None)}"
    return HOLDS, f"{said}: free up to {_percent(found.free_up_to)}"


def _fitting(tables: Tables) -> Answer:
    found = pruned_regimes(tables)
    if found.why:
        return UNKNOWN, found.why
    high = [level for level in found.levels if level.target >= 0.7]
    if not high:
        return UNKNOWN, "no sparsity of 70 % or more was measured"
    said = "; ".join(
        f"{_percent(level.target)}: training loss {level.train_loss.change:+.3f} ± {level.train_loss.noise:.3f} nats"
        for level in high
        if level.train_loss is not None
    )
    if any(level.regime == FITTING for level in high):
        return HOLDS, said
    if all(level.regime is None for level in high):
        return UNKNOWN, f"{said}; {high[0].why}"
    return FAILS, said


def _linear(tables: Tables) -> Answer:
    fits = tables["transfer"]
    if (
        fits.empty
        or (fits := fits[(fits["condition"] == "information_deletion") & (fits["metric"] == "accuracy")]).empty
    ):
        return UNKNOWN, "no information-deletion run has a pre-training loss beside it"
    answers: dict[str, Status] = {}
    for line in fits.to_dict("records"):
        answers[line["task"]] = _one_line(line, _curvature(tables["runs"], line["task"]))
    said = ", ".join(f"{line['task']} {_r(line['r'])}" for line in fits.to_dict("records"))
    counts = {status: [*answers.values()].count(status) for status in (HOLDS, FAILS, UNKNOWN)}
    said += f"; a falling line on {counts[HOLDS]} of {len(answers)} tasks"
    if fits["n"].max() < 4:
        return UNKNOWN, f"{said}; fewer than four sparsities"
    if 2 * counts[FAILS] >= len(answers):
        return FAILS, said
    if 4 * counts[HOLDS] >= 3 * len(answers):
        return HOLDS, said
    return UNKNOWN, f"{said}, {counts[FAILS]} clearly none, {counts[UNKNOWN]} too noisy"


def _r(value: float) -> str:
    return "always scores the same" if math.isnan(value) else "r = " + minus(f"{value:.3f}")


def _one_line(line: dict[Any, Any], curvature: float) -> Status:
    slope, half, r2 = line["slope"], line["half"], line["r"] ** 2
    if line["n"] < 4 or math.isnan(half) or math.isnan(r2):
        return UNKNOWN
    if slope - half > 0:
        return FAILS
    if slope + half < 0 and r2 >= LINE:
        return HOLDS
    return FAILS if curvature < 0.05 and r2 < LINE else UNKNOWN


def _curvature(runs: Frame, task: str) -> float:
    """p of the lack-of-fit test: that the means of the seeds leave the line by chance; NaN without replicates."""
    from scipy.stats import f

    if not len(runs):
        return math.nan
    some = runs[(runs["condition"] == "information_deletion") & (runs["variant"] == "pruned") & (runs["task"] == task)]
    some = some.dropna(subset=["pretrain_loss", "accuracy"])
    x, y = some["pretrain_loss"].to_numpy(float), some["accuracy"].to_numpy(float)
    levels, within = some["target"].nunique(), some.groupby("target")["accuracy"]
    spare = len(some) - levels
    if levels < 3 or spare < 1 or len({*x}) < 2:
        return math.nan
    pure = float(((some["accuracy"] - within.transform("mean")) ** 2).sum())
    left = float(((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum())
    return float(f.sf((left - pure) / (levels - 2) / (pure / spare), levels - 2, spare)) if pure > 0 else math.nan


def _against_pruned(condition: str, tables: Tables) -> tuple[dict[float, Any], str]:
    """{target: condition - pruned} over the tasks with seeds and something to lose; or why there is none."""
    found = study.cells(tables["runs"])
    shared = sorted({*study.targets(found, condition)} & {*study.targets(found, "pruned")})
    if not any(shared):
        return {}, f"no sparsity was measured for both {condition.replace('_', ' ')} and pruned"
    verdict = pruned_regimes(tables)
    if not verdict.tasks:
        return {}, verdict.why
    pairs = {t: contrast(found, study.main(condition, t), study.main("pruned", t), verdict.tasks) for t in shared if t}
    return {t: pair for t, pair in pairs.items() if pair is not None}, "no task was scored in both"


def _said(pairs: dict[float, Any]) -> str:
    return "; ".join(f"{_percent(target)}: {_points(pair)}" for target, pair in pairs.items())


def _tuned_first(tables: Tables) -> Answer:
    pairs, why = _against_pruned("after_finetuning", tables)
    if not pairs:
        return UNKNOWN, why
    said = f"tuned first against pruned, points: {_said(pairs)}"
    if any(_better(pair) for pair in pairs.values()):
        return FAILS, said
    return (HOLDS if all(pair.high < MATTERS for pair in pairs.values()) else UNKNOWN), said


def _better(pair: Any) -> bool:
    """Whether a difference is both larger than the noise and large enough to matter."""
    return pair.low > 0 and pair.change >= MATTERS


def _deletion(tables: Tables) -> Answer:
    pairs, why = _against_pruned("information_deletion", tables)
    low = {t: pair for t, pair in pairs.items() if t <= 0.6}
    high = {t: pair for t, pair in pairs.items() if t >= 0.8}
    if not low or not high:
        return UNKNOWN, why if not pairs else "needs a sparsity up to 60 % and one from 80 % on"
    said = f"masks lifted against kept, points: {_said(pairs)}"
    if any(_better(pair) for pair in low.values()) or all(pair.high < MATTERS for pair in high.values()):
        return FAILS, said
    calm = all(abs(pair.change) + pair.noise < 2 * MATTERS for pair in low.values())
    return (HOLDS if calm and any(_better(pair) for pair in high.values()) else UNKNOWN), said


def _random(tables: Tables) -> Answer:
    pairs, why = _against_pruned("random", tables)
    if not pairs:
        return UNKNOWN, why
    said = f"random against pruned, points: {_said(pairs)}"
    worse = [pair.high < 0 for pair in pairs.values()]
    if all(worse):
        return HOLDS, said
    return (FAILS if any(pair.low > 0 for pair in pairs.values()) else UNKNOWN), said


def _drift(tables: Tables) -> Answer:
    rows = tables["features"]
    if rows.empty or (rows := rows[(rows["variant"] == "pruned")])["target"].nunique() < 3:
        return UNKNOWN, "features were compared at fewer than three sparsities"
    means = rows.groupby("target")["cosine"].mean()
    said = ", ".join(f"{_percent(target)}: {value:.3f}" for target, value in means.items())
    falls = means.diff().dropna()
    if (falls <= 0.005).all() and means.iloc[-1] < means.iloc[0] - 0.01:
        return HOLDS, f"mean cosine {said}"
    return FAILS, f"mean cosine {said}"


def _masks(tables: Tables) -> Answer:
    rows = tables["distance"]
    if rows.empty:
        return UNKNOWN, "no weights of a fine-tuned dense model were kept"
    rows = of_variant(rows[rows["path"] == "all"], "dense")
    parts, worst = [], 0.0
    for against, some in rows.groupby("against"):
        ratio = f"{some['ratio'].min():.2f} to {some['ratio'].max():.2f} of chance"
        parts.append(f"against {against}: {_range(some['hamming'])} of the weights, {ratio}")
        worst = max(worst, float(some["hamming"].max()))
    return (HOLDS if worst < 0.06 else FAILS), "; ".join(parts)


def _longer(tables: Tables) -> Answer:
    rows, runs = tables["distance"], tables["runs"]
    if rows.empty or "tuned_epochs" not in runs or (some := runs.dropna(subset="tuned_epochs")).empty:
        return UNKNOWN, "no model was cut after fine-tuning"
    target = float(some.groupby("target")["tuned_epochs"].nunique().idxmax())
    some = some[some["target"] == target]
    settings = {}
    for variant, epochs in some.groupby("variant")["tuned_epochs"].first().items():
        if variant == "dense" or f"{variant}" in {*rows["variant"]}:
            settings[float(epochs)] = ("after_finetuning", str(variant), target)
    if len(settings) < 2:
        return UNKNOWN, "every cut came after the same number of epochs"
    first, last = min(settings), max(settings)
    rows = rows[(rows["path"] == "all") & (rows["against"] == study.UNTUNED) & (rows["target"] == target)]
    found = study.cells(runs)
    shared = [t for t in study.tasks(some) if all((setting, t) in found for setting in settings.values())]
    masks = rows[(rows["epochs"] == last) & rows["task"].isin(shared)]["hamming"]
    pair = contrast(found, settings[last], settings[first], shared)
    if pair is None or masks.empty:
        return UNKNOWN, "no task was scored after both the fewest and the most epochs"
    said = (
        f"cut at {_percent(target)} after {last:g} epochs: masks differ in {_range(masks)} of the weights from the "
        f"dense model's; {_points(pair)} points against {first:g} ({', '.join(shared)})"
    )
    if masks.max() >= 0.06 or (abs(pair.change) > pair.noise and abs(pair.change) >= MATTERS):
        return FAILS, said
    return (HOLDS if abs(pair.change) + pair.noise < 2 * MATTERS else UNKNOWN), said


def _moves(tables: Tables) -> Answer:
    rows = tables["movement"]
    if rows.empty or (rows := of_variant(rows[rows["path"] == "all"], "dense")).empty:
        return UNKNOWN, "no weights of a fine-tuned dense model were kept"
    means = rows.groupby("task")["mean"].max()
    said = ", ".join(f"{task} {100 * value:.2f} %" for task, value in means.items())
    return (HOLDS if means.max() < 0.045 else FAILS), f"{said} of all places (random orders: 33.3 %)"


def _large_stay(tables: Tables) -> Answer:
    rows = tables["movement_rank"]
    if rows.empty:
        return UNKNOWN, "no weights of a fine-tuned dense model were kept"
    rows = of_variant(rows, "dense")
    top = rows[rows["bin"] >= 80].groupby(["task", "learning_rate", "seed"])["before"].sum()
    said = f"the largest fifth makes {_range(top)} of all movement (n = {len(top)} runs; an even share is 20 %)"
    if (top < 0.2).all():
        return HOLDS, said
    return (FAILS if (top > 0.2).all() else UNKNOWN), said


def _heads(tables: Tables) -> Answer:
    rows = tables["heads"]
    if rows.empty or (rows := rows[(rows["variant"] == "pruned") & (rows["target"] > 0)]).empty:
        return UNKNOWN, "no pruned model is finished"
    target = min(rows["target"].unique(), key=lambda t: abs(t - 0.6))
    if abs(target - 0.6) > 0.11:
        return UNKNOWN, "no sparsity near 60 % was measured"
    shares = rows[rows["target"] == target]["sparsity"]
    said = f"at {_percent(target)} the {len(shares)} heads lie at {_range(shares)}"
    return (HOLDS if (shares - target).abs().max() < 0.05 else FAILS), said


def _spread(tables: Tables) -> Answer:
    if (rows := of_variant(tables["weights"], "dense")).empty:
        return UNKNOWN, "the weights of the dense model were not measured"
    std, mean = rows["std"], (rows["mean"] / rows["std"]).abs()
    said = f"std {std.min():.3f} to {std.max():.3f} over {len(rows)} matrices; largest |mean| / std {mean.max():.2f}"
    return (HOLDS if std.between(0.025, 0.05).all() else FAILS), said


def _short_tokens(tables: Tables) -> Answer:
    rows = tables["tokens"]
    order = ("1 character", "2-3", "4-6", "7 or more")
    if rows.empty:
        return UNKNOWN, "the word embeddings were not measured"
    means = of_variant(rows, "dense").set_index("group")["abs_mean"]
    kept = [means[name] for name in order if name in means]
    if len(kept) < 3:
        return UNKNOWN, "the vocabulary has too few lengths of tokens"
    said = ", ".join(f"{name} {means[name]:.4f}" for name in ("[unused]", *order) if name in means)
    return (HOLDS if all(np.diff(kept) > 0) else FAILS), f"mean |w| by letters: {said}"


def _memory(tables: Tables) -> Answer:
    rows = tables["memory"]
    if rows.empty:
        return UNKNOWN, "the dense model was not measured"
    share = of_variant(rows, "dense").set_index("part")["share"]
    words, both = share["word embeddings"], share["word embeddings"] + share["feed-forward"]
    said = f"word embeddings {100 * words:.1f} %, with the feed-forward layers {100 * both:.1f} %"
    return (HOLDS if abs(words - 0.2129) < 0.01 and abs(both - 0.7277) < 0.01 else FAILS), f"{said} of the weights here"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}\N{NO-BREAK SPACE}%"


def _range(values: Frame) -> str:
    low, high = (f"{100 * value:.1f}" for value in (values.min(), values.max()))
    return f"{low if low == high else f'{low} to {high}'}\N{NO-BREAK SPACE}%"


def _points(pair: Any) -> str:
    if pair is None:
        return "no score"
    noise = "no interval" if math.isnan(pair.noise) else f"±\N{NO-BREAK SPACE}{100 * pair.noise:.1f}"
    return minus(f"{round(100 * pair.change, 1) + 0.0:+.1f}\N{NO-BREAK SPACE}{noise}")


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
