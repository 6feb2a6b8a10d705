"""The report about workdirs: a study's tables and page, or a page and metrics.csv about single runs, side by side."""

import json
import logging
import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.load import read_yaml
from jaxprune.data.metrics import METRICS
from jaxprune.errors import UserError
from jaxprune.experiments.provenance import provenance
from jaxprune.experiments.study_report import make_report
from jaxprune.experiments.summary import CONSTANT, dev_words, score_words
from jaxprune.experiments.weights import stored_config
from jaxprune.models.other_files import CONFIG
from jaxprune.progress import duration
from jaxprune.reports.number_text import percent
from jaxprune.reports.workdir_page import workdir_page
from jaxprune.training.workdir import read_records

log = logging.getLogger("jaxprune")

Row = dict[str, Any]


def report(sources: Sequence[Path], out: Path | None = None) -> None:
    """Write `report.html` and `metrics.csv` about runs into `out`, by default the one workdir that they are in.

    A study gets its tables and its own page, in it. UserError for what is no workdir, for several without `out`, and
    where one of the two files is there without the other, so that it is none of ours.
    """
    folders = [Path(source).expanduser().absolute() for source in sources]
    if study := next((folder for folder in folders if _command(folder) == "study"), None):
        if len(folders) > 1 or out is not None:
            raise UserError(f"{study}: is a study, whose page is written into it; give it alone and without --out")
        return make_report(study)
    if len(folders) > 1 and out is None:
        raise UserError(f"{len(folders)} workdirs: name the directory of their common page with --out DIR")
    runs = _named([_record(workdir) for folder in folders for workdir in workdirs(folder)])
    folder = Path(out).expanduser() if out else folders[0]
    page, curves = folder / "report.html", folder / "metrics.csv"
    there = [path for path in (page, curves) if path.exists()]
    if len(there) == 1:
        raise UserError(f"{there[0]}: is there already, and not of this command; name another directory with --out DIR")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"run": run["name"], **line} for run in runs for line in run["curve"]]
    facts, commands = provenance(run["workdir"] for run in runs)
    config = folders[0] / "config.yaml"
    workdir_page(
        page,
        runs,
        title=", ".join(path.resolve().name for path in folders),
        headline=_headline(runs),
        warnings=[f"{run['name']} {CONSTANT}." for run in runs if run["constant"]],
        facts=facts,
        commands=commands,
        config=config.read_text() if len(folders) == 1 and config.is_file() else "",
        links=[curves.name],
    )
    pandas.DataFrame(rows).to_csv(curves, index=False)
    log.info("open %s; the curves are in %s", page, curves)


def workdirs(folder: Path) -> list[Path]:
    """The workdirs of the single runs in a folder: itself, the cells of its grid, or those right below it."""
    cfg = stored_config(folder)
    if cfg is not None and (folder / "run.json").is_file():
        return [folder]
    below = sorted(
        {path.parent for path in folder.glob("*/run.json")} | {p.parent for p in folder.glob("*/*/run.json")}
    )
    below = [path for path in below if stored_config(path) is not None]
    if below:
        return below
    if not folder.is_dir():
        raise UserError(f"{folder}: is not there; give the --workdir of a run or of a study")
    if (folder / CONFIG).is_file():
        raise UserError(f"{folder}: is a model, not a workdir; `jaxprune inspect {folder}` prints tables about it")
    raise UserError(f"{folder}: holds no run; give the --workdir of a run that has begun, or of a study")


def _named(runs: list[Row]) -> list[Row]:
    """The runs, called by their paths without the folders that they share."""
    common = os.path.commonpath([run["workdir"].parent for run in runs])
    return [run | {"name": str(run["workdir"].relative_to(common))} for run in runs]


def _command(folder: Path) -> str:
    path = folder / "config.yaml"
    return read_yaml(path).get("command", "") if path.is_file() else ""


def _record(workdir: Path) -> Row:
    cfg, path = stored_config(workdir), workdir / "result.json"
    curve, prunes = (read_records(workdir / name) for name in ("metrics.jsonl", "prunes.jsonl"))
    result = json.loads(path.read_text()) if path.is_file() else None
    last = curve[-1]["step"] if curve else 0
    pruned = [{"step": line["step"], "sparsity": line["sparsity"]} for line in prunes]
    tuned = isinstance(cfg, FinetuneConfig)
    sparsity = result["sparsity"] if result else prunes[-1]["sparsity"] if prunes else 0.0
    row = {"steps": f"{result['steps'] if result else last:,}", "sparsity": f"{sparsity:.4f}"}
    if result is None:
        row["result"] = "not finished"
    else:
        row["result"] = score_words(result) if tuned else dev_words(result["dev"])
        row["took"] = duration(result["seconds_this_session"])
    return {
        "workdir": workdir,
        "row": row,
        "result": result,
        "curve": sorted([*pruned, *curve], key=lambda line: line["step"]),
        "leaves": prunes[-1]["leaves"] if prunes else {},
        "sparsity": sparsity,
        "constant": bool(result and result.get("constant_predictions")),
    }


def _headline(runs: Sequence[Row]) -> str:
    """What came out, in one sentence."""
    finished = [run["result"] for run in runs if run["result"]]
    tuned = [result for result in finished if "task" in result]
    if len(runs) > 1 and not tuned:
        return f"{len(runs)} runs side by side, {len(finished)} of them finished."
    if not finished:
        return f"Not finished: {runs[0]['row']['steps']} steps so far."
    if tuned:
        tasks = dict.fromkeys(result["task"] for result in tuned)
        best = [_best([result for result in tuned if result["task"] == task]) for task in tasks]
        words = "; ".join(f"{result['task']}: {result['metric']} {result['score']:.3f}" for result in best)
        return f"{words}{f', the best of {len(tuned)} runs' if len(tuned) > len(tasks) else ''}."
    (result,) = finished
    pruned = f" with {percent(round(result['sparsity'], 4))} pruned" if result["sparsity"] else ""
    return f"Dev loss {result['dev']['loss']:.3f} nats{pruned} after {result['steps']:,} steps."


def _best(results: Sequence[Row]) -> Row:
    sign = -1 if METRICS[results[0]["metric"]].lower_is_better else 1
    return max(results, key=lambda result: sign * result["score"])
