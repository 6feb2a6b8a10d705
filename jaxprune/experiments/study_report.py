"""The tables and the page of a study, from its finished runs alone."""

import logging
from pathlib import Path

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.config.study import StudyConfig
from jaxprune.errors import UserError
from jaxprune.experiments.matrix import matrix
from jaxprune.experiments.provenance import provenance
from jaxprune.progress import Progress
from jaxprune.reports.number_text import listed, percent

log = logging.getLogger("jaxprune")


def make_report(root: Path) -> None:
    """Write `tables/` and `report.html` of a study."""
    from jaxprune.experiments.tables import write_tables
    from jaxprune.reports.study_page import study_page

    with Progress(root.name, "measuring the models") as progress:
        write_tables(root)
        progress.stage = "drawing the page"
        facts, commands = provenance(sorted(path.parent for path in (root / "runs").rglob("run.json")))
        page = study_page(root, facts, commands, gaps(root))
    log.info("open %s", page)


def gaps(study: Path) -> list[str]:
    """The fine-tuning runs that `config.yaml` asks for and `tables/runs.csv` lacks: a line for each condition or switch
    at a sparsity, with the tasks, and their seeds where others are there."""
    from jaxprune.analysis.study_tables import MAIN, complete, read_csv
    from jaxprune.experiments.tables import name_parts

    path, table = study / "config.yaml", study / "tables" / "runs.csv"
    if not path.is_file():
        return ["config.yaml is missing, so what was planned is not known."]
    try:
        cfg = validate(StudyConfig, read_yaml(path), str(path))
    except UserError:
        return ["config.yaml was written by another version, so what was planned is not known."]
    rows = complete({"runs": read_csv(table)} if table.is_file() else {})["runs"]
    done = {*zip(*(rows[name] for name in ("condition", "variant", "target", "task", "seed")))}
    found: dict[str, dict[str, dict[int, bool]]] = {}
    for job in matrix(cfg, study / "runs"):
        if not isinstance(job.cfg, FinetuneConfig) or job.path.startswith("finetune/dense/"):
            continue
        condition, name, task = job.path.split("/")[1:4]
        (variant, target), seed = name_parts(name), job.cfg.seeds[0]
        arm = condition.replace("_", " ") if variant == MAIN[condition] else f"switch {variant}"
        cell = found.setdefault(f"{arm} at {percent(target)}", {}).setdefault(task, {})
        cell[seed] = (condition, variant, target, task, seed) in done
    lines = []
    for cell, tasks in found.items():
        missing = {task: [seed for seed, there in seeds.items() if not there] for task, seeds in tasks.items()}
        names = [
            task
            if len(seeds) == len(tasks[task])
            else f"{task} (seed{'s' * (len(seeds) > 1)} {listed([*map(str, seeds)])})"
            for task, seeds in missing.items()
            if seeds
        ]
        lines += [f"{cell}: {', '.join(names)}"] * bool(names)
    return lines
