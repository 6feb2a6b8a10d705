"""Copy the tables and the page of a study, and print the tables of its README.md.

python results/study_mini/build.py runs/study_mini/study results/study_mini
Without the study, the page again from the tables and the config that lie here:
python results/study_mini/build.py results/study_mini
"""

import csv
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from jaxprune.analysis import study_tables as study
from jaxprune.analysis.intervals import Estimate, difference, estimate, mean_of, shared_tasks
from jaxprune.reports.claims import pruned_cost
from jaxprune.reports.number_text import with_noise
from jaxprune.reports.study_page import study_page
from jaxprune.training.workdir import read_records

FACTS = {
    "versions": "jaxprune 0.1.0, jax 0.10.2, Python 3.11.7",
    "hardware": "2 cores of an AMD EPYC, shared with other jobs",
    "date": "2026-11-24",
    "commit": "a67d435",
}
"""Of this study, whose workdirs recorded neither date nor commit."""
COMMANDS = (
    "jaxprune prepare configs/study_mini/prepare.yaml --workdir runs/study_mini/data",
    "jaxprune pretrain configs/study_mini/dense.yaml --workdir runs/study_mini/dense",
    "jaxprune study configs/study_mini/study.yaml --workdir runs/study_mini/study",
)


def main(place: Path, out: Path) -> None:
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for path in sorted((place / "tables").glob("*.csv")):
        shutil.copy(path, out / "tables" / path.name)
    page = (place / "report.html").read_text(encoding="utf-8")
    (out / "report.html").write_text(page, encoding="utf-8")
    shutil.copy(place / "config.yaml", out / "config.yaml")
    dense(Path(yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))["dense"]), out)
    tables = study.read_tables(out / "tables")
    known = pruned_cost(tables).tasks
    for names in (known, study.tasks(study.trained(tables["runs"]))):
        print(", ".join(names))
        scores(tables, names)
    by_task(tables, known)
    switches(tables, known)
    shallower(tables, known)
    geometry(tables)
    print("| where | claim | here | why |\n|---|---|---|---|")
    with (out / "tables" / "claims.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            why = row["why"].replace("|", "\\|")
            print(f"| {row['item']} | {row['claim']} | **{row['status']}** | {why} |")


def dense(run: Path, out: Path) -> None:
    """The dev losses of the dense model while it trained, for what says whether they had flattened."""
    rows = [row for row in read_records(run / "metrics.jsonl") if "dev_loss" in row]
    names = ["step", *(name for name in rows[0] if name.startswith("dev_"))]
    with (out / "tables" / "dense.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def scores(tables: study.Tables, names: Sequence[str]) -> None:
    """Mean accuracy over these tasks, a row per sparsity and a column per condition."""
    found, losses = study.cells(tables["runs"], "accuracy"), tables["pretrain"]
    print(f"| sparsity | dev loss | {' | '.join(study.CONDITIONS)} |\n|{'---|' * 6}")
    for target in study.targets(found, "pruned"):
        loss = losses[(losses["variant"] == "pruned") & (losses["target"] == target)]["dev_loss"].mean()
        row = [f"{target:g}", f"{loss:.3f}"]
        for condition in study.CONDITIONS:
            mean = mean_of([estimate(found.get((study.setting_of(condition, target), task), [])) for task in names])
            interval = "" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}"
            row.append("" if math.isnan(mean.mean) else f"{100 * mean.mean:.1f}{interval}")
        print("|", " | ".join(row), "|")
    print()


def by_task(tables: study.Tables, names: Sequence[str]) -> None:
    """Each task's own metric x 100, a row per arm and sparsity, and the change from the unpruned model in points."""
    found = study.seeded(study.trained(tables["runs"]))
    tasks = study.tasks(study.trained(tables["runs"]))
    print(f"| arm | sparsity | {' | '.join(tasks)} | against unpruned |\n|{'---|' * (3 + len(tasks))}")
    settings = {setting for setting, _ in found if setting[0] in study.MAIN}
    for setting in sorted(settings, key=lambda s: (s[1] not in study.MAIN.values(), [*study.MAIN].index(s[0]), *s[1:])):
        condition, variant, target = setting
        arm = condition if variant in study.MAIN.values() else variant
        runs = [found.get((setting, task), {}).values() for task in tasks]
        values = [with_noise(estimate([run.value for run in by_seed]), scale=100) for by_seed in runs]
        change = difference(found, setting, study.setting_of("pruned", 0.0), names)
        values.append(points(change and change._replace(half=math.nan)).removesuffix(" (no interval)"))
        print(f"| {arm} | {target:g} | {' | '.join(values)} |")
    print()


def switches(tables: study.Tables, names: Sequence[str]) -> None:
    """Each switch against its condition without it, in points over those of these tasks that it has."""
    found = study.seeded(study.trained(tables["runs"]))
    print("| switch | condition | sparsity | dev loss, change | change in points | tasks |\n|---|---|---|---|---|---|")
    for setting in sorted({s for s, _ in found if s[0] in study.MAIN and s[1] not in study.MAIN.values()}):
        condition, variant, target = setting
        base = study.base_of(condition, target, found)
        change = study.dev_loss_change(tables["pretrain"], variant, base)
        loss = "" if math.isnan(change) else f"{change:+.3f}"
        both = ", ".join(name for name in names if (setting, name) in found and (base, name) in found)
        change = points(difference(found, setting, base, names))
        print(f"| {variant} | {condition} | {target:g} | {loss} | {change} | {both} |")
    print()


def shallower(tables: study.Tables, names: Sequence[str]) -> None:
    """A pruned encoder against a shallower dense one with as many weights, in points over these tasks."""
    found = study.seeded(study.trained(tables["runs"]))
    ours, other = ("pruned", "encoder_only", 0.5), ("pruned", "three_layers", 0.0)
    if (change := difference(found, ours, other, names)) is not None:
        both = ", ".join(shared_tasks(found, ours, other, names))
        print(f"Encoder pruned to 50 % against three of six layers, {both}: {points(change)} points\n")


def geometry(tables: study.Tables) -> None:
    """Spearman x 100 of sentence similarity, nothing fine-tuned: cut in one shot, and after recovery; and what recovery
    changed, against the cut and against the dense start."""
    found = study.seeded(study.of(tables["runs"], task="sts"))
    seeds = sorted({seed for runs in found.values() for seed in runs})
    # Nothing is trained, so that a start that was scored once scores the same with every seed.
    found = {cell: dict.fromkeys(seeds, *runs.values()) if len(runs) == 1 else runs for cell, runs in found.items()}
    heads = (
        "cut, before recovery",
        "recovered",
        "encoder only",
        "random",
        "recovered - cut",
        "recovered - dense start",
    )
    arms = [("after_finetuning", "dense"), ("pruned", "pruned"), ("pruned", "encoder_only"), ("random", "random")]
    if found:
        print(f"| sparsity | {' | '.join(heads)} |\n|{'---|' * 7}")
    for target in sorted({target for (_, _, target), _ in found}):
        runs = [found.get(((*arm, target), "sts"), {}) for arm in arms]
        # One score for all seeds has no interval.
        values = [[run.value for run in {*by_seed.values()}] for by_seed in runs]
        row = [with_noise(estimate(scores), scale=100) for scores in values]
        ours, cut = ((*arm, target) for arm in (arms[1], arms[0]))
        row += [points(difference(found, ours, base, ["sts"])) for base in (cut, (*arms[0], 0.0))]
        print(f"| {target:g} | {' | '.join(row)} |")
    print()


def points(change: Estimate | None) -> str:
    """A difference of scores in points."""
    return with_noise(change, scale=100, sign=True, alone="(no interval)")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(study_page(Path(sys.argv[1]), FACTS, COMMANDS))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
