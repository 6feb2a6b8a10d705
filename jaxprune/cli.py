"""The command line: parses arguments, calls one function, turns errors into one line and an exit code."""

import argparse
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jaxprune
from jaxprune.errors import EXIT_RESOURCES, UserError
from jaxprune.exit_code import exit_code_of, leave, open_streams, quiet_threads
from jaxprune.usage import USAGE

EXIT_USER = UserError.exit_code


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    own_process = argv is None
    if own_process:
        open_streams()
        gc.set_threshold(100_000)  # imports make a million objects that stay: looking for garbage takes a sixth of them
    if own_process and sys.argv[1:2] and sys.argv[1] in ("demo", "pretrain", "finetune", "study"):
        _use_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    quiet = "--quiet" in argv
    argv = [word for word in argv if word != "--quiet"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jaxprune").setLevel(logging.WARNING if quiet else logging.INFO)
    quiet_threads()
    job = any(word.startswith("--distributed") for word in argv)
    compiles = argv[:1] and argv[0] in COMMANDS and not {"--help", "-h"} & {*argv}

    def command() -> int:
        if own_process and compiles and not job:  # of a job only the first process would write what all of them read
            from jaxprune.experiments.compilation_cache import keep_programs

            keep_programs()
        return _answer(argv)

    code = exit_code_of(command, f"jaxprune {argv[0]}" if argv else "jaxprune", job=job)
    if code and (job or (own_process and code == EXIT_RESOURCES)):
        leave(code)
    return code


def _answer(argv: list[str]) -> int:
    if argv and argv[0] in ("--version", "-V"):
        print(jaxprune.__version__)
        return 0
    if not argv or argv[0] in ("--help", "-h"):
        print(USAGE, end="")
        return 0 if argv else EXIT_USER
    name, *rest = argv
    if name not in COMMANDS:
        print(f"jaxprune: {name!r} is no command; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USER
    try:
        return COMMANDS[name](rest) or 0
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)


def _use_huge_pages() -> None:
    """Start this process over, once, with huge pages for malloc.

    XLA allocates its temporaries anew in every step; on a CPU, page faults are a good part of a small model's step
    (benchmarks/train_step.py). glibc reads the setting at start-up only, and other systems have none.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class _Parser(argparse.ArgumentParser):
    """Raises a one-line error instead of printing the usage."""

    def error(self, message: str):
        raise UserError(f"{message}; see `jaxprune --help`")


def _configured(
    command: str, run: Callable[..., object], more: str = "", *, anew: bool = False
) -> Callable[[list[str]], int]:
    """A command that takes CONFIG, --workdir, --dry-run and overrides of any key, besides the flags in `more`.

    `anew`: it takes --from-scratch too.
    """

    def call(argv: list[str]) -> int:
        from jaxprune.config import COMMANDS as MODELS
        from jaxprune.config.load import parse

        parser = _Parser(add_help=False, allow_abbrev=False)
        parser.add_argument("--workdir")
        parser.add_argument("--dry-run", action="store_true")
        parser.add_argument("--distributed", nargs="?", const="auto")
        if anew:
            parser.add_argument("--from-scratch", action="store_true")
        known, overrides = parser.parse_known_args(argv)
        if known.distributed and known.distributed.endswith((".yaml", ".yml")):  # it stood before the config
            overrides.insert(0, known.distributed)
            known.distributed = "auto"
        path = Path(overrides.pop(0)) if overrides and not overrides[0].startswith("-") else None
        flags = ("[--from-scratch]" if anew else "", more)
        prog = " ".join(filter(None, [f"jaxprune {command} CONFIG.yaml --workdir DIR [--dry-run]", *flags]))
        wants_help = "--help" in overrides or "-h" in overrides
        if path is None and not wants_help:
            raise UserError(f"no config; usage: {prog} [--a.b value ...], see `jaxprune {command} --help`")
        config = parse(MODELS[command], path, overrides, prog=prog, offers=_offers)
        if known.workdir == "" or (known.workdir is None and not known.dry_run):
            raise UserError("--workdir is missing or empty; name the directory to write to")
        if command != "prepare" and (url := re.match("([a-z][a-z0-9+.-]*):/", known.workdir or "")):
            remedy = "give a local directory, or where the bucket is mounted"
            raise UserError(f"--workdir {known.workdir}: {command} does not write to {url[1]}:// ; {remedy}")
        if known.distributed:
            _join(known.distributed)
        scratch = {"from_scratch": known.from_scratch} if anew else {}
        run(config, Path(known.workdir) if known.workdir else None, dry_run=known.dry_run, **scratch)
        return 0

    return call


def _offers() -> dict[str, list[str]]:
    """The names that config keys of that name take: the keys of the registries."""
    from jaxprune.experiments.names import offers

    return offers()


def _join(spec: str) -> None:
    """Make this process part of a job; all but process 0 say no more than what goes wrong."""
    from jaxprune.experiments.environment import join

    if not join(spec):
        logging.getLogger("jaxprune").setLevel(logging.WARNING)


def _experiment(module: str, name: str) -> Callable[..., object]:
    """A function of `experiments/`, imported when it is called: the libraries behind it take seconds."""
    return lambda *args, **more: getattr(importlib.import_module(f"jaxprune.experiments.{module}"), name)(*args, **more)


def _study(argv: list[str]) -> None:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--shard", default="")
    known, rest = parser.parse_known_args(argv)

    def run(config, workdir: Path, *, dry_run: bool) -> None:
        from jaxprune.experiments.study import study

        study(config, workdir, dry_run=dry_run, only=known.only, part=known.shard)

    _configured("study", run, "[--only REGEX] [--shard i/n]")(rest)


def _report(argv: list[str]) -> None:
    parser = _Parser(
        prog="jaxprune report",
        description="Write report.html and metrics.csv about a run, or about several side by side; of a study its "
        "tables and its page, from the runs that are finished.",
    )
    parser.add_argument("sources", metavar="DIR", type=Path, nargs="+", help="the workdir of a run, a grid or a study")
    parser.add_argument("--out", metavar="DIR", type=Path, help="directory to write to; default: DIR, if it is one")
    from jaxprune.experiments.run_report import report

    report(**vars(parser.parse_args(argv)))


def _from_to(prog: str, description: str) -> _Parser:
    """A parser of SRC, DST and --variant; the command runs on the CPU: a chip may be busy, and takes longer to find."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax starts
    parser = _Parser(prog=prog, description=description)
    parser.add_argument("src", metavar="SRC", help="Hugging Face directory or hub name, or the workdir of a run")
    parser.add_argument("dst", metavar="DST", type=Path, help="directory to write; must be new or empty")
    parser.add_argument("--variant", default="", metavar="NAME", help="fp16: read model.fp16.safetensors")
    return parser


def _prune(argv: list[str]) -> None:
    words = "Prune a Hugging Face encoder in one shot, without training, and write a Hugging Face directory."
    parser = _from_to("jaxprune prune", words)
    parser.add_argument("--sparsity", type=float, required=True, help="fraction in [0, 1] to prune")
    from jaxprune.experiments.names import one_shot_criteria

    names = _offers() | {"criterion": one_shot_criteria()}
    defaults = {"scope": "matrix", "distribution": "uniform", "structure": "weights", "method": "exact"}
    for key, default in (defaults | {"criterion": "magnitude"}).items():
        words = f"one of {', '.join(names[key])}; default: {default}"
        parser.add_argument(f"--{key}", default=default, metavar="NAME", help=words)
    parser.add_argument(
        "--include", nargs="+", metavar="REGEX", default=(), help="whole paths to prune (default: the architecture's)"
    )
    parser.add_argument("--exclude", nargs="+", metavar="REGEX", default=(), help="whole paths to leave alone")
    pair, words = ("REGEX", "SPARSITY"), "a sparsity of their own; none: leave alone"
    parser.add_argument("--amount", nargs=2, action="append", default=[], metavar=pair, help=words)
    parser.add_argument(
        "--masks", choices=("fixed", "none"), default="fixed", help="none: nothing of SRC counts as pruned"
    )
    parser.add_argument(
        "--calibration", default="", metavar="FILE", help="a text per line, for a criterion that observes something"
    )
    for key, number, words in (
        ("texts", 256, "texts to read of it"),
        ("rounds", 1, "prunes up to the sparsity, texts read anew for each"),
        ("seed", 0, "of random scores, and of masked tokens"),
    ):
        parser.add_argument(f"--{key}", type=int, default=number, metavar="N", help=f"{words}; default: {number}")
    parser.add_argument("--verbose", action="store_true", help="print a row per matrix, not per kind of matrix")
    from jaxprune.experiments.prune_folder import prune_folder

    known = vars(parser.parse_args(argv))
    amounts = {regex: _amount(regex, text) for regex, text in known.pop("amount")}
    prune_folder(**known, amounts=amounts)


def _export(argv: list[str]) -> None:
    parser = _Parser(
        prog="jaxprune export", description="Write a model in a form that other tools read, or that is smaller."
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxprune.experiments.export_model import FORMATS, export_model

    dtypes = dict.fromkeys(dtype for form in FORMATS.values() for dtype in form.dtypes)
    parser.add_argument("model", metavar="MODEL", help="workdir, Hugging Face directory or hub name, or a sparse one")
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory to write; must be new or empty")
    parser.add_argument("--format", dest="form", required=True, metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    words = "; ".join(f"{name}: {', '.join(form.dtypes)}" for name, form in FORMATS.items())
    parser.add_argument("--dtype", default="", choices=["", *dtypes], metavar="TYPE", help=f"of the values; {words}")
    parser.add_argument("--coded", action="store_true", help="sparse: masks in fewer bits, somewhat slower to load")
    parser.add_argument("--variant", default="", metavar="NAME", help="fp16: read model.fp16.safetensors")
    export_model(**vars(parser.parse_args(argv)))


def _compact(argv: list[str]) -> None:
    words = "Write a model without the heads and neurons that are pruned whole, which computes the same."
    parser = _from_to("jaxprune compact", words)
    parser.add_argument("--layers", nargs="+", type=int, metavar="N", default=(), help="layers that stay, from 0")
    parser.add_argument(
        "--vocabulary", nargs="+", metavar="TEXT", default=(), help="files of text: pieces they do not use go"
    )
    parser.add_argument(
        "--text-field", default="text", metavar="COLUMN", help="column or key of TEXT that holds it; default: text"
    )
    parser.add_argument(
        "--uneven", action="store_true", help="each layer keeps what it needs itself; transformers cannot load that"
    )
    from jaxprune.experiments.compact import compact

    compact(**vars(parser.parse_args(argv)))


def _predict(argv: list[str]) -> None:
    parser = _Parser(prog="jaxprune predict", description="Label the texts of a file with a fine-tuned model.")
    parser.add_argument(
        "model", metavar="MODEL", help="fine-tuned workdir (its best run counts) or Hugging Face directory"
    )
    parser.add_argument("file", metavar="FILE", help="CSV, TSV, JSON Lines or Parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".csv or .jsonl to write; default: CSV, printed")
    parser.add_argument(
        "--text", nargs="+", default=(), metavar="COLUMN", help="one column, or two for pairs (default: as in training)"
    )
    parser.add_argument("--max-len", type=int, default=0, metavar="N", help="tokens per example (default: the model's)")
    from jaxprune.experiments.predict import predict

    predict(**vars(parser.parse_args(argv)))


def _amount(regex: str, text: str) -> float | None:
    if text == "none":
        return None
    with suppress(ValueError):
        if 0 <= (amount := float(text)) <= 1:
            return amount
    from jaxprune.config.load import of_percent

    hint = of_percent(text)
    raise UserError(f"--amount {regex} {text}: give a fraction in [0, 1]{hint}, or none to leave them alone")


def _demo(argv: list[str]) -> None:
    parser = _Parser(
        prog="jaxprune demo",
        description="Pre-train a small BERT on text this machine has, prune it to several sparsities, fine-tune each, "
        "and write report.html. About 6 minutes on 2 CPU cores.",
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument(
        "--model", default="", metavar="DIR", help="prune this model, in as much time: a Hugging Face one"
    )
    from jaxprune.experiments.demo import demo

    known = parser.parse_args(argv)
    demo(known.workdir, model=known.model)


def _inspect(argv: list[str]) -> None:
    parser = _Parser(prog="jaxprune inspect", description="Tables about one checkpoint.")
    parser.add_argument("source", metavar="CKPT", help="workdir, Hugging Face directory or hub name")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of tables")
    from jaxprune.experiments.inspect import inspect_checkpoint

    inspect_checkpoint(**vars(parser.parse_args(argv)))


def _check(argv: list[str]) -> int:
    parser = _Parser(prog="jaxprune check", description="Say whether a directory is as it was written, or what works.")
    parser.add_argument("dir", metavar="DIR", type=Path, help="workdir, prepared data, or Hugging Face directory")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxprune.experiments.check import check

    return check(parser.parse_args(argv).dir)


def _doctor(argv: list[str]) -> int:
    parser = _Parser(prog="jaxprune doctor", description="Say what a run would find on this machine.")
    parser.add_argument("--workdir", type=Path, default=Path(), help="directory to write to; default: this one")
    from jaxprune.experiments.doctor import doctor

    return doctor(parser.parse_args(argv).workdir)


def _diff(argv: list[str]) -> None:
    parser = _Parser(prog="jaxprune diff", description="Tables about what lies between two checkpoints of one shape.")
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="workdir, Hugging Face directory or hub name")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of tables")
    from jaxprune.experiments.inspect import diff_checkpoints

    diff_checkpoints(**vars(parser.parse_args(argv)))


def _plan(argv: list[str]) -> None:
    parser = _Parser(
        prog="jaxprune plan CONFIG.yaml",
        allow_abbrev=False,
        description="Compile a pretrain config for a TPU slice, without a TPU, and print what it takes there.",
        epilog="Any key of the config can be set too: --a.b value (`jaxprune pretrain --help` lists them).",
    )
    parser.add_argument("--topology", required=True, metavar="SLICE", help="v5e-8, v5p-64, v6e-16, v5e:16x16, ...")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--price", type=float, metavar="USD", help="per chip and hour")
    parser.add_argument("--largest-batch", action="store_true", help="search it: several compilations")
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens per example, if not the prepared data's")
    known, overrides = parser.parse_known_args(argv)
    if not overrides or overrides[0].startswith("-"):
        raise UserError("no config; usage: jaxprune plan CONFIG.yaml --topology SLICE, see `jaxprune plan --help`")
    from jaxprune.config import PretrainConfig
    from jaxprune.config.load import parse

    config = parse(PretrainConfig, Path(overrides[0]), overrides[1:], prog=parser.prog, offers=_offers)
    # Before jax starts. No chip is touched, so processes may share the compiler and it need not ask where it runs.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    from jaxprune.experiments.slice_plan import plan_slice

    plan_slice(config, **vars(known))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": _demo,
    "prepare": _configured("prepare", _experiment("prepare", "prepare_data")),
    "pretrain": _configured("pretrain", _experiment("pretrain", "pretrain"), anew=True),
    "finetune": _configured("finetune", _experiment("finetune", "finetune"), anew=True),
    "study": _study,
    "report": _report,
    "prune": _prune,
    "export": _export,
    "compact": _compact,
    "predict": _predict,
    "inspect": _inspect,
    "diff": _diff,
    "check": _check,
    "doctor": _doctor,
    "plan": _plan,
}
