"""The page of the first run, and the table of README.md, from the tables beside it.

python results/first_run/build.py results/first_run
"""

import statistics
import sys
from pathlib import Path

import pandas

from jaxprune.reports.runs_page import runs_page

FACTS = {
    "model": "BERT, 2 layers x 128, 30,522 word pieces",
    "dense start": "4,000 steps of 16 x 128 tokens",
    "recovery": "400 steps, pruned until step 200",
    "hardware": "2 cores of an AMD EPYC, shared with other jobs",
    "versions": "jaxprune 0.1.0, jax 0.10.2, Python 3.11.7",
    "date": "2026-11-24",
    "commit": "78fef41",
}


def main(folder: Path) -> None:
    runs, scores, curves, matrices, plan = (
        pandas.read_csv(folder / f"{name}.csv") for name in ("runs", "scores", "curves", "matrices", "plan")
    )
    records = []
    for run in runs.to_dict("records"):
        points, leaves = (table[table["target"] == run["target"]] for table in (curves, matrices))
        curve = points.drop(columns="target").to_dict("records")
        records.append(run | {"curve": curve, "leaf_sparsity": dict(zip(leaves["path"], leaves["sparsity"]))})
    scored = scores.to_dict("records")
    runs_page(
        records,
        scored,
        out_dir=folder,
        title="First run on real text",
        plan={t: dict(zip(rows["step"], rows["sparsity"])) for t, rows in plan.groupby("target")},
        facts=FACTS,
        timings={
            "prune to each sparsity and recover": runs["seconds"].sum(),
            "fine-tune on two tasks": scores["seconds"].sum(),
        },
        commands=[
            line.removeprefix("#   ").rstrip()
            for name in ("prepare", "dense", "recover", "finetune")
            for line in (Path("configs/first_run") / f"{name}.yaml").read_text().splitlines()
            if line.startswith("#   ")
        ],
        config=Path("configs/first_run/recover.yaml").read_text(),
        notes=["CoLA is scored by Matthews' correlation; its accuracy is in scores.csv."],
    )
    print(markdown(records, scored))


def markdown(pretrained: list[dict], finetuned: list[dict]) -> str:
    """The table of README.md: means over seeds, with the range."""
    lines = [
        "| sparsity | dev loss (MLM + NSP) | MLM | NSP | SST-2 accuracy | CoLA Matthews | CoLA accuracy "
        "| SST-2 train loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in pretrained:

        def cell(task: str, column: str, target: float = run["target"]) -> str:
            values = [row[column] for row in finetuned if row["task"] == task and row["target"] == target]
            return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

        lines.append(
            f"| {run['sparsity']:.4f} | {run['dev_loss']:.3f} | {run['dev_mlm_loss']:.3f} | {run['dev_nsp_loss']:.3f} "
            f"| {cell('SST-2', 'score')} | {cell('CoLA', 'score')} | {cell('CoLA', 'accuracy')} "
            f"| {cell('SST-2', 'train_loss')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
