"""The tables and the page of a study, from its finished runs alone."""

import logging
from pathlib import Path

from jaxprune.experiments.provenance import provenance
from jaxprune.progress import Progress

log = logging.getLogger("jaxprune")


def make_report(root: Path) -> None:
    """Write `tables/` and `report.html` of a study."""
    from jaxprune.experiments.tables import write_tables
    from jaxprune.reports.study_page import study_page

    with Progress(root.name, "measuring the models") as progress:
        write_tables(root)
        progress.stage = "drawing the page"
        facts, commands = provenance(sorted(path.parent for path in (root / "runs").rglob("run.json")))
        page = study_page(root, facts, commands)
    log.info("open %s", page)
