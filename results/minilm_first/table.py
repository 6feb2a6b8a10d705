"""The tables of README.md from what run.sh left: `python results/minilm_first/table.py OUT`."""

import sys
from pathlib import Path

import pandas

FOLDERS = ["dense", *(f"{kind}-{sparsity}" for sparsity in (0.5, 0.7, 0.9) for kind in ("encoder", "all"))]

print("| model | weights pruned | STS-B Spearman | SST-2 accuracy: mean | by seed |", "|---|---|---|---|---|", sep="\n")
for name in FOLDERS:
    sts, sst2 = (pandas.read_csv(Path(sys.argv[1]) / task / name / "results.csv") for task in ("sts", "sst2"))
    seeds = " ".join(f"{100 * score:.1f}" for score in sst2["score"])
    pruned, spearman = sts["sparsity"][0], sts["score"][0]
    print(f"| {name} | {100 * pruned:.1f} % | {spearman:.4f} | {100 * sst2['score'].mean():.1f} | {seeds} |")
