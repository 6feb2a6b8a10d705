"""Tables and page of the first run, from its workdirs alone.

python results/first_run/build.py runs/first_run results/first_run
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import yaml

from jaxprune.reports.runs_page import runs_page

SPARSITIES = ("0", "0.5", "0.7", "0.9")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pretraining_run(place: Path, target: float) -> dict:
    result = json.loads((place / "result.json").read_text())
    metrics, prunes = read_lines(place / "metrics.jsonl"), read_lines(place / "prunes.jsonl")
    dev = result["dev"]
    return {
        "target": target,
        "sparsity": result["sparsity"],
        "dev_loss": dev["loss"],
        "dev_mlm_loss": dev["mlm"],
        "dev_nsp_loss": dev["nsp"],
        "mlm_accuracy": dev["mlm_accuracy"],
        "nsp_accuracy": dev["nsp_accuracy"],
        "seconds": result["seconds_this_session"],
        "curve": [{k: m[k] for k in ("step", "loss", "sparsity")} for m in metrics if "loss" in m],
        "leaf_sparsity": prunes[-1]["leaves"] if prunes else {},
    }


def finetuning_runs(place: Path, target: float) -> list[dict]:
    with (place / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "target": target,
            "task": row["task"],
            "seed": int(row["seed"]),
            "metric": row["metric"],
            "score": float(row["score"]),
            "accuracy": float(row["accuracy"]),
            "train_loss": float(row["train_loss"]),
            "majority": 0.0 if row["metric"] == "matthews" else float(row["majority_accuracy"]),
            "majority_accuracy": float(row["majority_accuracy"]),
            "seconds": float(row["seconds_this_session"]),
        }
        for row in rows
    ]


def main(runs: Path, out: Path) -> None:
    pretrained = [pretraining_run(runs / f"s{s}", float(s)) for s in SPARSITIES]
    finetuned = [row for s in SPARSITIES for row in finetuning_runs(runs / f"glue-s{s}", float(s))]
    plans = {float(r["step"]): r["target"] for r in read_lines(runs / "s0.9" / "prunes.jsonl")}
    environment = json.loads((runs / "s0.9" / "run.json").read_text())
    dense = read_lines(runs / "dense" / "metrics.jsonl")
    config = yaml.safe_load((runs / "s0.9" / "config.yaml").read_text())
    model = config["model"]
    facts = {
        "model": f"BERT, {model['num_hidden_layers']} layers x {model['hidden_size']}, "
        f"{model['vocab_size']:,} word pieces",
        "dense start": f"{dense[-1]['step']:,} steps of 16 x 128 tokens, training loss {dense[-1].get('loss', 0):.2f}",
        "recovery": f"{config['steps']:,} steps, pruned until step {config['prune']['end']:,}",
        "hardware": f"{environment['cores']} cores, {environment['devices'][0]}",
        "versions": f"jaxprune {environment['jaxprune']}, jax {environment['packages']['jax']}",
    }
    timings = {
        "prune to each sparsity and recover": sum(run["seconds"] for run in pretrained),
        "fine-tune on two tasks": sum(row["seconds"] for row in finetuned),
    }
    runs_page(
        pretrained,
        finetuned,
        out_dir=out,
        title="First run on real text",
        plan={0.9: {int(step): sparsity for step, sparsity in plans.items()}},
        facts=facts,
        timings=timings,
        commands=[
            line.removeprefix("#   ").rstrip()
            for name in ("prepare", "dense", "recover", "finetune")
            for line in (Path("configs/first_run") / f"{name}.yaml").read_text().splitlines()
            if line.startswith("#   ")
        ],
        config=Path("configs/first_run/recover.yaml").read_text(),
        notes=["CoLA is scored by Matthews' correlation; its accuracy is in scores.csv."],
    )
    print(markdown(pretrained, finetuned))


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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
