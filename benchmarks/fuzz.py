"""Whether any reader falls over what is in a file: seeded mutations of good files, read until the time is over.

Run from the repository root:

    PYTHONPATH=. nice -n 19 python benchmarks/fuzz.py --minutes 10 --seed 0 --reader yaml [--reader tables ...]

Without `--reader` all of them, one after the other. A reader may return a value or raise an error that has an exit code
of its own (jaxprune/errors.py); everything else, and more than some seconds, is a finding: its input and traceback are
kept in `--out`, one per line of code that raised it. Prints per reader: executions, how many of them gave a value, how
many an error, findings. Exit code 1 where there are any.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
os.environ.update(JAX_PLATFORMS="cpu", HF_HUB_OFFLINE="1")

import workflow  # noqa: E402

SECONDS = 20
TOKENS = [
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r\n",
        b"\t",
        b",",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"-",
        b" ",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-1",
        b"0",
        b"1e999",
        b"9" * 5000,
        b"9" * 19,
        b"1.5",
        b"[" * 2000,
        b"&a *a",
    ),
    *(
        b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
        b"!!python/object/apply:os.system [x]",
        b"../",
        b"/",
        b"~",
        b"{}",
        b"[]",
        b'""',
    ),
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A file with some of its bytes changed, cut, doubled, moved or replaced."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        begin = rng.randrange(len(made) + 1)
        end = min(len(made), begin + rng.choice([0, 1, 1, 4, 16, 100]))
        way = rng.randrange(7)
        if way == 0 and made:
            made[begin % len(made)] ^= 1 << rng.randrange(8)
        elif way == 1:
            made[begin:end] = rng.choice(TOKENS)
        elif way == 2:
            made[begin:begin] = rng.choice(TOKENS)
        elif way == 3:
            del made[begin:end]
        elif way == 4:
            made[begin:begin] = made[begin:end] * rng.choice([1, 2, 50])
        elif way == 5 and rng.random() < 0.3:
            del made[begin:]
        else:
            made[begin:end] = rng.randbytes(end - begin)
    return bytes(made)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with a value of it replaced or removed, at any depth; other files as `mutated` has them."""
    try:
        tree = json.loads(content)
    except ValueError:
        return mutated(content, rng)
    values: list[Any] = [None, True, -1, 0, 2**40, 1.5, "", "x", [], {}, [[]], {"a": 1}, "\ud800", 10**30, float("nan")]
    at, key = tree, None
    while isinstance(at, dict | list) and at:
        parent, key = at, rng.choice([*at]) if isinstance(at, dict) else rng.randrange(len(at))
        at = at[key]
        if rng.random() < 0.3:
            break
    if key is not None:
        if rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = rng.choice(values)
    return json.dumps(tree).encode()


def read_yaml(folder: Path) -> None:
    """A config."""
    from jaxprune.config import COMMANDS
    from jaxprune.config.load import read_config, validate

    for name, model in COMMANDS.items():
        if (path := folder / f"{name}.yaml").is_file():
            validate(model, read_config(path), str(path))


def read_model(folder: Path) -> None:
    """A model folder: config.json, weights, packed or not, masks, tokenizer."""
    from jaxprune.models.folder import read_folder
    from jaxprune.models.weights import read_masks

    read_masks(str(folder), None)
    read_folder(str(folder), head=None)


def read_tokenizer(folder: Path) -> None:
    """A tokenizer's files, and what they make of a text."""
    from jaxprune.data import tokenizer
    from jaxprune.models import architecture_named

    vocab = tokenizer.load(str(folder), special=architecture_named("bert").special_tokens)
    vocab.encode(["The cat sees the river.", "\u2028 [MASK] é 漢"])
    tokenizer.files(vocab, max_length=32)


def read_npz(folder: Path) -> None:
    """How far an unfinished prepare is."""
    from jaxprune.data import resume_point

    resume_point.load(folder)


def read_data(folder: Path) -> None:
    """The manifest of prepared data, and the data behind it."""
    from jaxprune.data import data_manifest

    manifest = data_manifest.read_manifest(folder)
    data_manifest.special_tokens(folder, manifest)
    data_manifest.verify(folder, manifest["files"])


def read_tables(folder: Path) -> None:
    """Tables of a task."""
    from jaxprune.config.task import OwnTaskConfig
    from jaxprune.data.glue_examples import load
    from jaxprune.data.own_task import read_task

    for path in sorted(folder.glob("mine*")):
        for more in ({}, {"kind": "regression"}):
            read_task(
                OwnTaskConfig(name="mine", train=str(path), dev=str(path), text="text", label="label", **more), ""
            )
    if (folder / "SST-2").is_dir():
        load("SST-2", str(folder), "train")


def read_corpus(folder: Path) -> None:
    """Files of a corpus, and their sentences."""
    from jaxprune.config.sections import SourceConfig
    from jaxprune.data.corpus import documents
    from jaxprune.data.sentences import sentences

    for path in sorted(folder.iterdir()):
        for text in documents(SourceConfig(kind="local", path=str(path))):
            sentences(text)


def read_workdir(folder: Path) -> None:
    """A workdir's own records, as check and a start read them."""
    from jaxprune.experiments.check import check
    from jaxprune.training.workdir import Workdir

    check(folder)
    with Workdir(folder) as workdir:
        workdir.starts()
        workdir.result()
        for name in ("metrics.jsonl", "prunes.jsonl"):
            workdir.rewind(name, 3)


Change = Callable[[bytes, random.Random], bytes]
READERS: dict[str, tuple[Callable[[Path], None], Change]] = {
    "yaml": (read_yaml, mutated),
    "model": (read_model, mutated),
    "model-json": (read_model, changed_json),
    "sparse": (read_model, mutated),
    "tokenizer": (read_tokenizer, mutated),
    "tokenizer-json": (read_tokenizer, changed_json),
    "npz": (read_npz, mutated),
    "data": (read_data, mutated),
    "data-json": (read_data, changed_json),
    "tables": (read_tables, mutated),
    "corpus": (read_corpus, mutated),
    "workdir": (read_workdir, mutated),
    "workdir-json": (read_workdir, changed_json),
}


def seeds(tiny: workflow.Tiny) -> dict[str, Path]:
    """A folder of good files per reader."""
    import gzip

    import numpy as np
    import pandas

    from jaxprune.data import resume_point

    folder, run = tiny.root / "seeds", tiny.root / "fuzz-run"
    config = tiny.pretrain_yaml(tiny.root / "fuzz.yaml", steps=4, prune={"begin": 1, "end": 3, "every": 1})
    assert tiny.run("pretrain", config, "--workdir", run).code == 0
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "hf", folder / "model")
    exported = tiny.run("export", run, folder / "sparse", "--format", "sparse", "--dtype", "int8", "--coded")
    assert exported.code == 0, exported.err
    shutil.copytree(tiny.data, folder / "data")
    shutil.copytree(run, folder / "workdir", ignore=shutil.ignore_patterns("tensorboard", "hf"))
    (folder / "yaml").mkdir()
    tiny.prepare_yaml(folder / "yaml" / "prepare.yaml")
    tiny.pretrain_yaml(folder / "yaml" / "pretrain.yaml", prune={"amounts": {".*query.*": 0.5, "": 0.7}})
    tiny.finetune_yaml(folder / "yaml" / "finetune.yaml")
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(run / "hf" / name, folder / "tokenizer")
    (folder / "npz").mkdir()
    resume_point.save(folder / "npz", {"counts": {"a": 1}, "splits": {"train": {"tokens": np.arange(9)}}})
    (folder / "tables" / "SST-2").mkdir(parents=True)
    rows = [("a cat, he said", 0), ('the "dog"', 1), ("x", 0), ("y z", 1)]
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        quoted = ['"' + text.replace('"', '""') + f'"{separator}{label}' for text, label in rows]
        (folder / "tables" / f"mine{suffix}").write_text("\n".join([f"text{separator}label", *quoted]) + "\n")
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (folder / "tables" / "mine.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(tiny.glue / "SST-2" / "train.tsv", folder / "tables" / "SST-2")
    (folder / "corpus").mkdir()
    text = (tiny.corpus / "0000.txt").read_text()
    (folder / "corpus" / "a.txt").write_text(f" = A title = \n\n{text}\n\n = = B = = \n“{text}”\n")
    (folder / "corpus" / "b.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (folder / "corpus" / "c.csv").write_text(f'text,b\n"{text}",1\n')
    pandas.DataFrame({"text": [text, "b"]}).to_parquet(folder / "corpus" / "e.parquet")
    pandas.DataFrame({"text": [text, "b"]}).to_feather(folder / "corpus" / "f.arrow")
    pandas.DataFrame(rows, columns=["text", "label"]).to_parquet(folder / "tables" / "mine.parquet")
    (folder / "corpus" / "d.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "corpus" / "wiki_00").write_text(f'<doc id="1" title="A &amp; b">\nA & b\n{text}\n</doc>\n')
    return {path.name: path for path in folder.iterdir()}


def fuzz(name: str, seed_folder: Path, seed: int, minutes: float, out: Path) -> Mapping[str, int]:
    """Executions, values, errors and findings of a reader."""
    from jaxprune.exit_code import code_of_error

    read, change = READERS[name]
    rng = random.Random(f"{seed} {name}")
    counts = {"executions": 0, "values": 0, "errors": 0, "findings": 0}
    seen: set[str] = set()
    files = sorted(path.relative_to(seed_folder) for path in seed_folder.rglob("*") if path.is_file())
    if name.endswith("-json"):
        files = [path for path in files if path.suffix == ".json"]
    small = [path for path in files if (seed_folder / path).stat().st_size < 200_000]
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
        folder = Path(base) / "input"
        while time.monotonic() < until:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(seed_folder, folder, copy_function=os.link)
            path = rng.choice(small)
            content = change((seed_folder / path).read_bytes(), rng)
            (folder / path).unlink()
            (folder / path).write_bytes(content)
            counts["executions"] += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                read(folder)
                counts["values"] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                if isinstance(error, Exception) and code_of_error(error) is not None:
                    counts["errors"] += 1
                    continue
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames if "jaxprune/" in frame.filename] or frames
                key = f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"
                if key not in seen:
                    seen.add(key)
                    counts["findings"] += 1
                    out.mkdir(parents=True, exist_ok=True)
                    (out / f"{name}-{key}{path.suffix}").write_bytes(content)
                    (out / f"{name}-{key}.trace").write_text(f"{path}\n{''.join(traceback.format_exception(error))}")
                    print(
                        f"{name}: {path}: {type(error).__name__}: {str(error)[:200]!r} at {key}",
                        file=sys.stderr,
                        flush=True,
                    )
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return counts


class TooSlow(Exception):
    """A reader took longer than it may."""


def main() -> int:
    """0 where there are no findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=[*READERS])
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--folder", type=Path, help="for good files and compiled programs; kept")
    args = parser.parse_args()

    def too_slow(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {SECONDS} s of CPU time")

    signal.signal(signal.SIGVTALRM, too_slow)
    findings = 0
    with ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-"))
        good = seeds(workflow.make(Path(folder).resolve()))
        null = stack.enter_context(Path(os.devnull).open("w"))
        results = sys.stdout
        for name in args.reader or READERS:
            sys.stdout = null  # check prints
            try:
                counts = fuzz(name, good[name.removesuffix("-json")], args.seed, args.minutes, args.out)
            finally:
                sys.stdout = results
            print(name, *(f"{key}={value}" for key, value in counts.items()), flush=True)
            findings += counts["findings"]
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
