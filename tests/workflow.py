"""A tiny path through the whole of jaxprune, made once per session: text, prepared data, configs, GLUE, weights."""

import atexit
import gc
import multiprocessing
import os
import random
import sys
import tempfile
import uuid
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

ROOT = Path(__file__).resolve().parent.parent
SEQ_LEN, VOCAB = 32, 160
if "JAXPRUNE_TEST_PROGRAMS" not in os.environ:  # this is the process that starts the workers
    _kept = tempfile.TemporaryDirectory(prefix="jaxprune-programs")
    os.environ["JAXPRUNE_TEST_PROGRAMS"] = _kept.name
PROGRAMS = {
    "JAX_COMPILATION_CACHE_DIR": os.environ["JAXPRUNE_TEST_PROGRAMS"],
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(8 << 30),  # with a limit, and so under a lock
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""What one test compiled others read, in all workers."""
XLA_FLAGS = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
"""Programs that compile four times as fast, which is most of the tests' time, and run slower."""
AS_SHIPPED = {"xla_cpu_use_fusion_emitters": True}
"""Compiler options for tests of the memory that a program takes: as it is compiled outside of tests."""

SUBJECTS = ["the cat", "a dog", "my sister", "the old man", "her teacher", "every child", "the red bird"]
VERBS = ["sees", "likes", "follows", "hears", "draws", "finds", "forgets", "visits"]
OBJECTS = ["the river", "a garden", "some bread", "the moon", "an old book", "the green door", "two stones"]
ENDS = ["in the morning", "at night", "near the sea", "without a word", "for a while", "with a smile"]


def sentence(rng: random.Random) -> str:
    """A grammatical English sentence of six to eleven words."""
    return " ".join(rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ENDS)).capitalize() + "."


def write_corpus(folder: Path, *, documents: int = 200, seed: int = 0) -> Path:
    """A folder of text files, one document each."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        text = " ".join(sentence(rng) for _ in range(rng.randint(4, 12)))
        (folder / f"{number:04d}.txt").write_text(text + "\n")
    return folder


def write_glue(folder: Path, *, seed: int = 0) -> Path:
    """SST-2, CoLA and STS-B in the layout of `glue_data/`, with labels that the words decide."""
    rng = random.Random(seed)
    lines: dict[str, list[str]] = {}
    for split, count in (("train", 48), ("dev", 27)):
        texts = [sentence(rng) for _ in range(count)]
        good = [int("smile" in text or "bread" in text or "moon" in text) for text in texts]
        lines[f"SST-2/{split}.tsv"] = ["sentence\tlabel", *(f"{t}\t{g}" for t, g in zip(texts, good, strict=True))]
        broken = [rng.random() < 0.5 for _ in texts]
        shuffled = [" ".join(reversed(t.split())) if b else t for t, b in zip(texts, broken, strict=True)]
        lines[f"CoLA/{split}.tsv"] = [f"x\t{1 - b}\t\t{t}" for t, b in zip(shuffled, broken, strict=True)]
        others = [t if rng.random() < 0.4 else sentence(rng) for t in texts]
        scores = [
            5 * len({*a.split()} & {*b.split()}) / len({*a.split()} | {*b.split()}) for a, b in zip(texts, others)
        ]
        lines[f"STS-B/{split}.tsv"] = [
            "sentence1\tsentence2\tscore",
            *(f"{a}\t{b}\t{s:.3f}" for a, b, s in zip(texts, others, scores, strict=True)),
        ]
    for name, rows in lines.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder


COMMAND = """
import sys
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A program that runs the command line."""

STOPPED = """
import os, sys
from jaxprune.training import loop

class Stop(loop.Stop):
    steps = 0
    def requested(self, step):
        Stop.steps += 1
        if Stop.steps == int(sys.argv[1]):
            os.kill(os.getpid(), int(sys.argv[2]))
        return super().requested(step)

loop.Stop = Stop
from jaxprune.cli import main
sys.exit(main(sys.argv[3:]))
"""
"""A program that runs the command line behind a step and a signal, which it sends itself in that step."""


class Tiny(NamedTuple):
    """Paths of the tiny inputs."""

    root: Path
    corpus: Path
    data: Path
    glue: Path

    def prepare_yaml(self, path: Path, **changes: Any) -> Path:
        """A prepare config over the tiny corpus, written to `path`."""
        config = {
            "command": "prepare",
            "sources": [{"kind": "local", "path": str(self.corpus)}],
            "tokenizer": {"train_size": VOCAB},
            "seq_len": SEQ_LEN,
            "dev_fraction": 0.1,
        }
        return write_yaml(path, _merge(config, changes))

    def pretrain_yaml(self, path: Path, **changes: Any) -> Path:
        """A pre-train config with a cubic plan from step 4 to 8 of 12, written to `path`."""
        config = {
            "command": "pretrain",
            "steps": 12,
            "batch_size": 8,
            "data": {"path": str(self.data)},
            "model": {
                "vocab_size": VOCAB,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": SEQ_LEN,
            },
            "prune": {"sparsity": 0.7, "begin": 4, "end": 8, "every": 2},
            "optimizer": {"learning_rate": 3e-3},
            "train": {"log_every": 1, "save_every": 4, "eval_batches": 2},
        }
        return write_yaml(path, _merge(config, changes))

    def finetune_yaml(self, path: Path, **changes: Any) -> Path:
        """A fine-tune config over the tiny GLUE folder, written to `path`."""
        config = {
            "command": "finetune",
            "tasks": ["SST-2"],
            "glue": str(self.glue),
            "learning_rates": [1e-3],
            "seeds": [0],
            "epochs": 1,
            "batch_size": 16,
            "max_len": SEQ_LEN,
            "train": {"log_every": 1},
        }
        return write_yaml(path, _merge(config, changes))

    def environment(self) -> dict[str, str]:
        """Of a real command: one CPU device, this checkout; programs compiled quickly, and once for all commands."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return os.environ | {
            "PYTHONPATH": path,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": XLA_FLAGS,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **PROGRAMS,
        }

    def start(self, *argv: object, program: str = COMMAND, **environment: str) -> "Running":
        """`jaxprune *argv`, or another `program` with these words, in a process of its own with `environment` on top.

        It is forked from a process that has imported what commands import and has not yet started JAX.
        """
        with patch.dict(os.environ, self.environment()):
            FORKS.set_forkserver_preload(["workflow", *IMPORTED])
            forkserver.ensure_running()
        out, err = (self.root / "output" / f"{uuid.uuid4().hex}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        words = [program, [*map(str, argv)], self.environment() | environment, str(self.root), str(out), str(err)]
        process = FORKS.Process(target=forked, args=words, daemon=True)
        process.start()
        return Running(process, out, err)

    def stop(self, step: int, number: int, *argv: object) -> "Done":
        """`jaxprune *argv`, which gets the signal `number` in the `step`-th step that it makes (from 1 on)."""
        return self.start(step, number, *argv, program=STOPPED).finish()

    def run(self, *argv: object) -> "Done":
        """`jaxprune *argv` in a process of its own, to its end."""
        return self.start(*argv).finish()


FORKS = multiprocessing.get_context("forkserver")
IMPORTED = (
    *(f"jaxprune.experiments.{name}" for name in ("pretrain", "finetune", "study", "prepare", "demo")),
    *("pytest", "grain", "datasets", "tensorboardX", "scipy.stats", "sklearn.metrics", "jaxprune.reports.study_page"),
)
"""What commands import; the tests that ask what a fresh process imports, or how long it takes, start one themselves."""


def forked(program: str, argv: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    """Be a fresh process: `python -c program *argv` in `folder`, with standard output and error written to files."""
    import jax

    gc.freeze()  # what was imported is not looked through again
    for fd, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = ["-c", *argv]
    jax.config.update("jax_num_cpu_devices", int(environment.get("JAX_NUM_CPU_DEVICES", -1)))  # read at import
    try:
        exec(program, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # processes that multiprocessing starts leave them out


class Running(NamedTuple):
    """A command that was started."""

    process: BaseProcess
    out: Path
    err: Path

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def finish(self, seconds: float = 300) -> "Done":
        """Wait for its end; it is killed after so many seconds."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        return Done(self.process.exitcode, self.out.read_text(), self.err.read_text())


class Done(NamedTuple):
    """What a finished command left."""

    code: int
    out: str
    err: str


def make(root: Path) -> Tiny:
    """All tiny inputs under `root`, prepared by the real command."""
    from jaxprune.cli import main

    tiny = Tiny(root, write_corpus(root / "corpus"), root / "data", write_glue(root / "glue"))
    assert main(["prepare", str(tiny.prepare_yaml(root / "prepare.yaml")), "--workdir", str(tiny.data)]) == 0
    return tiny


def write_yaml(path: Path, config: dict[str, Any]) -> Path:
    """`config` as YAML in `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged
