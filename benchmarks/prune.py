"""`jaxprune prune` on folders, whole commands, without and with a compilation cache from before.

    python benchmarks/prune.py DIR [DIR ...] [--rounds 3] [--hardware "2 cores of ..."] [-- --scope global]

Printed per folder: medians of seconds of wall and of CPU time, and peak resident memory. Cold: the cache is empty;
the files of the package and of the model are in the system's memory either way. Where other programs run, CPU time
says more; the load is printed beside it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hardware", default="unnamed hardware")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:at]), words[at + 1 :]
    print(f"{args.hardware}; {os.cpu_count()} cores; medians of {args.rounds}")
    for folder in args.folders:
        cold, warm = [], []
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as cache:
                cold.append(run(folder, flags, cache))
                warm.append(run(folder, flags, cache))
        for name, rounds in (("cold", cold), ("warm", warm)):
            wall, cpu, peak = map(statistics.median, zip(*rounds, strict=True))
            load = os.getloadavg()[0]
            print(f"{folder} {name}: {wall:.2f} s, CPU {cpu:.2f} s, peak {peak:.2f} GB (load {load:.1f})", flush=True)


def run(folder: str, flags: list[str], cache: str) -> tuple[float, float, float]:
    """Seconds of wall and of CPU time, and peak GB, of a whole process."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "jaxprune", "prune", folder, str(Path(directory) / "out")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        log = Path(directory) / "log"
        began = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--sparsity", "0.7", *flags],
                env=environment | {"XDG_CACHE_HOME": cache},
                stdout=file,
                stderr=file,
            )
            _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        if status:
            raise SystemExit(log.read_text()[-3000:])
        return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


if __name__ == "__main__":
    main()
