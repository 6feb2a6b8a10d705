"""One-shot pruning without any training: Spearman correlation on STS-B's dev set by cosine, which needs none either.

    python benchmarks/one_shot.py --model MINILM --text TEXT --glue GLUE --out results/one_shot/scores.csv

TEXT: a text per line; seed k reads the k-th `--texts` of them. Rows are added as they come, one seed of everything
before the next; what the table has already is not run again. The encoder's matrices alone are pruned.
"""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas

from jaxprune import cli
from jaxprune.experiments.prune_folder import prune_folder

METHODS = {
    "magnitude": ("magnitude", 1, "matrix"),
    "wanda": ("wanda", 1, "matrix"),
    "wanda, each output": ("wanda", 1, "output"),
    "obs": ("obs", 1, "matrix"),
    "obs, each output": ("obs", 1, "output"),
    "obs, 4 rounds": ("obs", 4, "matrix"),
    "fisher": ("fisher", 1, "matrix"),
    "obert": ("obert", 1, "matrix"),
}
"""Name -> criterion, rounds, scope."""
HEADED = {"fisher", "obert"}
"""What looks at gradients of the masked-LM loss, and needs a model with that head."""
PATHS = ("encoder/.*/kernel",)


def score(model: Path, glue: Path, folder: Path) -> float:
    """100 times Spearman's correlation of cosines with STS-B's scores: a fine-tuning of no epoch."""
    workdir = folder / "scored"
    shutil.rmtree(workdir, ignore_errors=True)
    (folder / "score.yaml").write_text("command: finetune\ntasks: [sts]\nepochs: 0\nlearning_rates: [1.0e-4]\n")
    words = ["finetune", folder / "score.yaml", "--workdir", workdir, "--init-from", model, "--glue", glue]
    assert cli.main(list(map(str, words))) == 0
    (result,) = workdir.glob("sts/*/result.json")
    return 100 * json.loads(result.read_text(encoding="utf-8"))["spearman"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "glue", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.6, 0.8])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[m for m in METHODS if m not in HEADED])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=128)
    args = parser.parse_args()
    lines = [line for line in args.text.read_text().splitlines() if line.strip()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = pandas.read_csv(args.out).to_dict("records") if args.out.exists() else []
    done = {(row["method"], row["sparsity"], row["seed"]) for row in known}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def add(method: str, sparsity: float, seed: int, model: Path, seconds: float) -> None:
            row = {"method": method, "sparsity": sparsity, "seed": seed, "texts": args.texts}
            known.append(row | {"spearman": round(score(model, args.glue, folder), 2), "seconds": round(seconds, 1)})
            pandas.DataFrame(known).to_csv(args.out, index=False)
            print(known[-1], flush=True)

        if ("dense", 0.0, 0) not in done:
            add("dense", 0.0, 0, args.model, 0.0)
        for seed, sparsity, method in itertools.product(range(args.seeds), args.sparsities, args.methods):
            criterion, rounds, scope = METHODS[method]
            if (method, sparsity, seed) in done or (criterion == "magnitude" and seed):
                continue
            settings: dict[str, Any] = {"scope": scope}
            if criterion != "magnitude":
                own = lines[seed * args.texts : (seed + 1) * args.texts]
                (folder / "texts.txt").write_text("\n".join(own))
                settings |= {"calibration": str(folder / "texts.txt"), "texts": args.texts, "rounds": rounds}
            model, begin = folder / f"{criterion}-{rounds}-{scope}-{sparsity}-{seed}", time.monotonic()
            prune_folder(
                str(args.model), model, sparsity=sparsity, criterion=criterion, include=PATHS, seed=seed, **settings
            )
            add(method, sparsity, seed, model, time.monotonic() - begin)


if __name__ == "__main__":
    main()
