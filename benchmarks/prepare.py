"""How fast text becomes training examples here, and which part of it is single-threaded.

Run from the repository root:

    PYTHONPATH=. python benchmarks/prepare.py configs/first_run/prepare.yaml --megabytes 40 --processes 1 2

Prepares the first `--megabytes` of every source of the config in a temporary directory, once per number of processes.
Prints per run the text, the seconds, MB/s (10^6 characters), the CPU seconds per 100 MB of the main process (reads,
packs and writes: the part that more cores do not speed up) and of the tokenising processes (the part they do), and the
peak memory of the main process and of the largest other one. With `--processes 1` all is in one process, with threads
in the tokenizer. CPU seconds mean something on a busy machine too; seconds and MB/s do not.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from jaxprune.config import PrepareConfig
from jaxprune.config.load import parse
from jaxprune.models import architecture_named

MEASURE = """
import json, resource, sys, tempfile, time
from pathlib import Path
from jaxprune.config import PrepareConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import corpus, prepare
cfg, special = PrepareConfig.model_validate_json(sys.argv[1]), SpecialTokens(*json.loads(sys.argv[2]))
chars = sum(len(text) for source in cfg.sources for text in corpus.documents(source))
def used(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
with tempfile.TemporaryDirectory(dir=".") as folder:
    begin, before = time.monotonic(), used(resource.RUSAGE_SELF)
    manifest = prepare.prepare(cfg, Path(folder) / "out", special)
    seconds = time.monotonic() - begin
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.npy"))
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"chars": chars, "seconds": seconds, "main": used(resource.RUSAGE_SELF) - before,
                  "others": used(resource.RUSAGE_CHILDREN), "peaks": peaks, "bytes": size,
                  "tokens": sum(split["tokens"] for split in manifest["splits"].values())}))
"""


def main() -> None:
    """Measure and print a line per number of processes."""
    parser = argparse.ArgumentParser(description="Rate of `jaxprune prepare`.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--megabytes", type=int, default=40, help="of text, of each source; 0: all")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    cfg = parse(PrepareConfig, args.config, [], prog="prepare")
    special = json.dumps(architecture_named(cfg.architecture).special_tokens)
    sources = tuple(s.model_copy(update={"max_chars": args.megabytes * 10**6}) for s in cfg.sources)
    print("processes     MB      s   MB/s   CPU s / 100 MB: main, others", end="")
    print("   peak MiB: main, another   tokens/MB   bytes/token", flush=True)
    for processes in args.processes:
        settings = cfg.model_copy(update={"sources": sources, "processes": processes}).model_dump_json()
        command = [sys.executable, "-c", MEASURE, settings, special]
        m = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        size = m["chars"] / 1e6
        print(
            f"{processes:9d} {size:6.1f} {m['seconds']:6.1f} {size / m['seconds']:6.2f}"
            f" {m['main'] / size * 100:21.1f} {m['others'] / size * 100:8.1f}"
            f" {m['peaks'][0]:15.0f} {m['peaks'][1]:8.0f} {m['tokens'] / size:11,.0f} {m['bytes'] / m['tokens']:13.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
