"""Copy the tables of the comparison, draw its figure, and print the tables of its README.md, judged as PLAN.md says.

python results/recipes/build.py runs/recipes results/study_minilm/tables results/recipes
"""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprune.analysis import study_tables as study
from jaxprune.analysis.intervals import Estimate, Replicates, difference, estimate
from jaxprune.reports.charts import Series, curves
from jaxprune.reports.number_text import with_noise
from jaxprune.reports.svg import category, style

TASKS = ("SST-2", "QNLI", "sts")
BASE = "pruned"
AS_LONG = {"distilled": "longer", "gmp_star_like": "longer", "obert_upstream": "twice"}
"""Arm -> the run of `pruned` that takes as many seconds."""

DRAWN = (BASE, "fisher", "obert_upstream", "gmp_star_like", "distilled")
"""Arms of the figure."""


class Arm(NamedTuple):
    """A recipe at a sparsity, beside gradual magnitude at the same one."""

    name: str
    target: float
    scores: dict[str, Estimate]
    """Task -> mean over its seeds."""
    lost: float
    """What the dense model scores above it, mean over the tasks."""
    changes: dict[str, Estimate]
    """Task -> this arm - the one that it is compared with, seed by seed; empty where that is itself."""
    against: str

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval says so on two tasks and the other way on none."""
        up = sum(change.low > 0 for change in self.changes.values())
        down = sum(change.high < 0 for change in self.changes.values())
        return "better" if up > 1 and not down else "worse" if down > 1 and not up else "cannot tell"


def main(place: Path, known: Path, out: Path) -> None:
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name in ("runs", "pretrain"):
        shutil.copy(place / "tables" / f"{name}.csv", out / "tables" / f"{name}.csv")
    tables = study.read_tables(out / "tables")
    ours, theirs = study.seeded(tables["runs"]), study.seeded(study.read_tables(known)["runs"])
    arms = compared(ours, theirs, {})
    losses = tables["pretrain"].groupby(["variant", "target"])["dev_loss"].mean()
    for target in sorted({arm.target for arm in arms if arm.changes}):
        show([arm for arm in arms if arm.target == target and arm.name not in AS_LONG.values()], losses)
    print("equal seconds")
    long = compared(ours, theirs, AS_LONG)
    show([arm for arm in long if arm.name in {*AS_LONG, *AS_LONG.values()} and arm.target == 0.9], losses)
    print("pruned, all sparsities")
    show([arm for arm in arms if arm.name == BASE], losses)
    for metrics in sorted((place / "runs/pretrain").glob("*/metrics.jsonl")):
        print(f"{metrics.parent.name}: {fastest(metrics):.0f} tokens/s at best")
    (out / "figure.svg").write_text(figure(arms), encoding="utf-8")


def compared(ours: Replicates, known: Replicates, bases: dict[str, str]) -> list[Arm]:
    """Every finished arm, beside what `bases` names, else beside `pruned`; chance from the runs of both studies."""
    both = {(("here", *setting), task): runs for (setting, task), runs in ours.items() if task in TASKS}
    both |= {(("known", *setting), task): runs for (setting, task), runs in known.items() if task in TASKS}

    def scores(setting: study.Setting) -> dict[str, Estimate]:
        found = {task: both.get((("here", *setting), task), {}) for task in TASKS}
        return {task: estimate([run.value for run in runs.values()]) for task, runs in found.items()}

    dense = scores((BASE, BASE, 0.0))
    arms = []
    for name, target in sorted({setting[1:] for setting, _ in ours}):
        against = name if name in {BASE, *bases.values()} else bases.get(name, BASE)
        setting, base, changes = (BASE, name, target), (BASE, against, target), {}
        for task in TASKS if name != against else ():
            change = difference(both, ("here", *setting), ("here", *base), [task])
            if change is not None:
                changes[task] = change
        mine = scores(setting)
        arms.append(
            Arm(name, target, mine, float(np.mean([dense[t].mean - mine[t].mean for t in TASKS])), changes, against)
        )
    return arms


def fastest(metrics: Path) -> float:
    """The largest of a run's tokens/s, which what else the machine does lowers least."""
    records = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return max(record.get("tokens_per_second", 0.0) for record in records)


def show(arms: list[Arm], losses: dict) -> None:
    """A row for each arm, the one that loses least first; points."""
    lost = {(arm.name, arm.target): arm.lost for arm in arms}
    heads = ["arm", "%", "dev loss", *TASKS, "lost", *(f"{task}, against" for task in TASKS), "", "verdict"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for arm in sorted(arms, key=lambda arm: (arm.target, arm.lost)):
        row = [arm.name, f"{100 * arm.target:g}"]
        row.append(f"{losses[arm.name, arm.target]:.3f}" if (arm.name, arm.target) in losses else "")
        row += [with_noise(arm.scores[task], scale=100) for task in TASKS]
        row.append(f"{100 * arm.lost:.1f}")
        row += [with_noise(arm.changes.get(task), scale=100, sign=True) for task in TASKS]
        half = arm.target == 0.9 and arm.verdict == "better"
        half = half and arm.lost <= lost.get((arm.against, arm.target), math.nan) / 2
        row += [arm.against, f"{arm.verdict}, halves the loss" if half else arm.verdict] if arm.changes else ["", ""]
        print("|", " | ".join(row), "|")
    print()


def figure(arms: list[Arm]) -> str:
    """Mean score of the tasks against sparsity, a curve for each arm of DRAWN."""
    series = []
    for number, name in enumerate(DRAWN):
        mine = [arm for arm in arms if arm.name == name and math.isfinite(arm.lost)]
        heights = [float(np.mean([arm.scores[task].mean for task in TASKS])) for arm in mine]
        series.append(Series(name, [arm.target for arm in mine], heights, color=category(number)))
    caption = "Mean score of SST-2, QNLI and STS-B after each recipe, by the sparsity of the encoder"
    svg = curves(caption, series, "mean score × 100", "sparsity (% of the encoder's matrices)").svg
    start, rest = svg.split(">", 1)
    return f"{start}><style>{style()}</style>{rest}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
