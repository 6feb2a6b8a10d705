"""Fine-tuning one epoch, whole commands in turn: jaxprune beside transformers' Trainer with dynamic padding.

    pip install --editable '.[parity]'
    python benchmarks/finetune.py --model DIR --glue glue_data/ [--tasks SST-2 QNLI MNLI] [--examples 4000] [--rounds 1]

Both read the same examples (the loader's subset), train for one epoch at batch 32 and rate 5e-5 and score the same dev
examples; jaxprune compiles anew each time. Printed per task: seconds of the whole command, peak resident memory, score.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATE, BATCH, MAX_LEN = 5e-5, 32, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--tasks", nargs="+", default=["SST-2", "QNLI", "MNLI"])
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--dev-examples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="round n runs with seed n on both sides")
    parser.add_argument("--only", choices=("trainer", "jaxprune"))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trainer", metavar="TASK", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trainer:
        print(json.dumps({"score": trainer(args)}))
        return
    for task in args.tasks:
        seconds: dict[str, list[float]] = {"trainer": [], "jaxprune": []}
        for seed in range(args.first_seed, args.first_seed + args.rounds):
            for side in [args.only] if args.only else seconds:
                took, peak, score = run(side, task, seed, args)
                seconds[side].append(took)
                print(f"{task:6s} {side:9s} {took:6.1f} s  peak {peak:5.2f} GB  accuracy {score:.4f}", flush=True)
        if not args.only:
            trainer_s, ours_s = (statistics.median(seconds[side]) for side in ("trainer", "jaxprune"))
            print(f"{task:6s} medians {trainer_s:.1f} / {ours_s:.1f} s, ratio {trainer_s / ours_s:.2f}", flush=True)


def run(side: str, task: str, seed: int, args: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds and peak GB of a whole process, and its score."""
    with tempfile.TemporaryDirectory() as directory:
        config, out = Path(directory) / "c.yaml", Path(directory) / "out"
        limits = {"max_train_examples": args.examples, "max_dev_examples": args.dev_examples}
        settings = {"command": "finetune", "tasks": [task], "glue": args.glue, "init_from": args.model, "epochs": 1}
        settings |= {"learning_rates": [RATE], "seeds": [seed], "batch_size": BATCH, "max_len": MAX_LEN, **limits}
        config.write_text(json.dumps(settings))  # JSON is YAML
        command = [sys.executable, "-m", "jaxprune", "finetune", str(config), "--workdir", str(out)]
        if side == "trainer":
            command = [sys.executable, *sys.argv, "--trainer", task, "--first-seed", str(seed)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        log = Path(directory) / "log"
        began = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        if status:
            raise SystemExit(log.read_text()[-3000:])
        if side == "trainer":
            score = json.loads(log.read_text().splitlines()[-1])["score"]
        else:
            score = json.loads(next(out.glob("*/*/result.json")).read_text())["score"]
        return took, usage.ru_maxrss / 1e6, score


def trainer(args: argparse.Namespace) -> float:
    """Dev accuracy after one epoch of transformers' Trainer."""
    import transformers

    from jaxprune.data.examples import subset
    from jaxprune.data.glue_examples import load

    transformers.set_seed(args.first_seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    parts = []
    for split, count in (("train", args.examples), ("dev", args.dev_examples)):
        examples = subset(load(args.trainer, args.glue, split), count, seed=0)
        second = [list(examples.second)] if examples.second is not None else []
        encoded = tokenizer(list(examples.first), *second, truncation=True, max_length=MAX_LEN)
        rows = [{key: encoded[key][i] for key in encoded} for i in range(len(examples))]
        parts.append([row | {"labels": int(label)} for row, label in zip(rows, examples.labels, strict=True)])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=len(examples.task.labels)
    )
    with tempfile.TemporaryDirectory() as directory:
        settings = transformers.TrainingArguments(
            directory,
            seed=args.first_seed,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=round(0.1 * len(parts[0]) / BATCH),
            weight_decay=0.01,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        run = transformers.Trainer(
            model,
            settings,
            train_dataset=parts[0],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        run.train()
        predicted = run.predict(parts[1])
        model.save_pretrained(directory)
    return float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())


if __name__ == "__main__":
    main()
