"""How near the estimate of `--dry-run` comes to the seconds of the run, in processes of their own.

Run from the repository root, once pre-training's data is prepared:

    PYTHONPATH=. python benchmarks/dry_run.py --rounds 3 configs/first_run/recover.yaml

Prints per round the seconds that the dry run said, those that the run took, and their ratio. What follows the config
goes to `jaxprune pretrain`, such as `--steps 200`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time


def main() -> None:
    """Measure and print a line per round."""
    parser = argparse.ArgumentParser(description="The estimate of `jaxprune pretrain --dry-run` beside the run.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("config")
    parser.add_argument("changes", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = [sys.executable, "-m", "jaxprune", "pretrain", args.config, *args.changes]
    print("  said s   took s   said / took")
    for _ in range(args.rounds):
        done = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True)
        number, unit = re.search(r"time, estimated +([\d.]+) (s|min|h) ", done.stdout).groups()
        said = float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            subprocess.run([*command, "--workdir", f"{folder}/run"], check=True, capture_output=True)
            took = time.monotonic() - began
        print(f"{said:8.0f} {took:8.1f} {said / took:13.2f}", flush=True)


if __name__ == "__main__":
    main()
