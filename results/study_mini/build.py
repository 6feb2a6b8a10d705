"""Copy the tables and the page of the study, and print the tables of README.md.

python results/study_mini/build.py runs/study_mini/study results/study_mini
"""

import csv
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from jaxprune.analysis import study_tables as study
from jaxprune.analysis.intervals import difference, estimate, mean_of
from jaxprune.training.workdir import read_records


def main(place: Path, out: Path) -> None:
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for path in sorted((place / "tables").glob("*.csv")):
        shutil.copy(path, out / "tables" / path.name)
    page = (place / "report.html").read_text(encoding="utf-8")
    (out / "report.html").write_text(page, encoding="utf-8")
    dense(Path(yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))["dense"]), out)
    tables = study.read_tables(out / "tables")
    for names in (["SST-2", "QNLI"], study.tasks(tables["runs"])):
        print(", ".join(names))
        scores(tables, names)
    switches(tables)
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
        loss = losses[(losses["variant"] == "pruned") & (losses["target"] == target)]["dev_loss"].item()
        row = [f"{target:g}", f"{loss:.3f}"]
        for condition in study.CONDITIONS:
            mean = mean_of([estimate(found.get((study.setting_of(condition, target), task), [])) for task in names])
            interval = "" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}"
            row.append("" if math.isnan(mean.mean) else f"{100 * mean.mean:.1f}{interval}")
        print("|", " | ".join(row), "|")
    print()


def switches(tables: study.Tables) -> None:
    """Each switch against its condition without it, in points on the first task."""
    found, losses = study.cells(tables["runs"]), tables["pretrain"].set_index(["variant", "target"])["dev_loss"]
    print("| switch | condition | dev loss, change | SST-2, change in points |\n|---|---|---|---|")
    for setting in sorted({s for s, _ in found if s[0] in study.MAIN and s[1] not in study.MAIN.values()}):
        condition, variant, target = setting
        base = study.setting_of(condition, target)
        known = difference(found, setting, base, ["SST-2"])
        loss = ""
        if (variant, target) in losses:
            loss = f"{losses[variant, target] - losses[study.MAIN[condition], target]:+.3f}"
        print(f"| {variant} | {condition} | {loss} | {100 * known.mean:+.1f} ± {100 * known.half:.1f} |")
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
