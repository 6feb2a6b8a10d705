"""The page of a study: what came out, then the paper's claims that it bears on, figures beside the published ones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxprune.analysis.study_tables import Tables, read_tables, trained, write_table
from jaxprune.errors import UserError
from jaxprune.reports import finetuning_sections, model_sections, score_sections
from jaxprune.reports.claims import FAILS, HOLDS, UNKNOWN, judge
from jaxprune.reports.evidence import shown
from jaxprune.reports.html_page import write_page
from jaxprune.reports.outcome_section import cost_of, outcome, what_ran
from jaxprune.reports.published import published_tables

MARKS = {HOLDS: "good", FAILS: "bad", UNKNOWN: "open"}
"""Status -> CSS class."""


def study_page(
    study: Path, facts: Mapping[str, str] | None = None, commands: Sequence[str] = (), gaps: Sequence[str] = ()
) -> Path:
    """Write `report.html` into the directory of a study from its `tables/*.csv` and `config.yaml` alone.

    `facts` (versions, hardware, ...), `commands` and `gaps` (planned runs that are missing) go to its foot. Missing
    tables leave a gap that the page names. Also writes tables/claims.csv. Returns the page's path.
    UserError when there is no table at all.
    """
    study = Path(study).expanduser()
    ours, theirs = read_tables(study / "tables"), published_tables()
    if not any(len(table) for table in ours.values()):
        raise UserError(f"{study}: has no tables/*.csv; `jaxprune report {study}` makes them from finished runs")
    config = study / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    judged = [shown(verdict, ours) for verdict in judge(ours)]
    claims = [
        {key: getattr(here, key) for key in ("item", "claim", "status", "why", "asked")}
        | {"published": there.status}
        | {"published_why": there.why if len(theirs[there.table]) else "the paper prints no values"}
        for here, there in zip(judged, judge(theirs), strict=True)
    ]
    write_table(study / "tables" / "claims.csv", claims)
    asked = [
        {**claim, "number": i, "mark": MARKS[claim["status"]]} for i, claim in enumerate(claims, 1) if claim["asked"]
    ]
    cost, sentence = cost_of(ours)
    return write_page(
        study / "report.html",
        "study.html.j2",
        title=study.resolve().name,
        headline=sentence,
        what_ran=what_ran(ours),
        outcome=outcome(ours, cost),
        cost=cost,
        claims=asked,
        counts={status: [claim["status"] for claim in asked].count(status) for status in MARKS},
        not_asked=[claim for claim in claims if not claim["asked"]],
        scores=score_sections.scores(ours, theirs),
        transfer=score_sections.transfer(ours, theirs),
        switches=score_sections.switches(ours),
        masks=finetuning_sections.masks(ours),
        movement=finetuning_sections.movement(ours),
        features=model_sections.features(ours),
        heads=model_sections.heads(ours),
        magnitudes=model_sections.magnitudes(ours),
        maps=model_sections.maps(ours),
        spread=model_sections.spread(ours),
        churn=model_sections.churn(ours),
        losses=model_sections.losses(ours),
        facts=_facts(ours) | {**(facts or {})},
        gaps=gaps,
        config=re.sub(r"(?<![\w./])/(?:[^\s/'\"]+/)+", ".../", text),  # without the folders of the machine that ran it
        links=sorted(f"tables/{path.name}" for path in (study / "tables").glob("*.csv")),
        timings={},
        commands=commands,
    )


def _facts(tables: Tables) -> dict[str, str]:
    facts: dict[str, str] = {}
    runs, pretrain, memory = tables["runs"], tables["pretrain"], tables["memory"]
    if len(memory):
        model = memory[memory["name"] == memory["name"].iloc[0]]
        facts["model"] = f"{model['weights'].sum():,.0f} weights with the pre-training heads"
    if len(pretrain):
        facts["pre-training"] = "; ".join(
            f"{rows['name'].item() if len(rows) == 1 else f'{len(rows)} models'}: {steps:,.0f} steps"
            for steps, rows in pretrain.groupby("steps", sort=False)
        )
        again = len(pretrain) - len(pretrain.drop_duplicates(["variant", "target"]))
        repeats = f"repeats with another seed among them: {again}" if again else "each trained once"
        covered = "is in the intervals of differences" if again else "is not covered by any interval"
        facts["models"] = f"{len(pretrain)}, {repeats}; chance in pre-training {covered}"
    if len(runs):
        facts["fine-tuning runs"] = f"{len(trained(runs))}"
        facts["tasks"] = "; ".join(
            f"{row['task']} {row['train_examples']:,.0f} train, {row['dev_examples']:,.0f} dev examples"
            for row in runs.dropna(subset="train_examples").drop_duplicates("task").to_dict("records")
        )
        seeds = runs.groupby("task")["seed"].nunique()
        facts["seeds"] = ", ".join(f"{task} {count}" for task, count in seeds.items())
        rates = sorted(runs["learning_rate"].unique())
        best = " (the best of a cell on the dev set, as in the paper)" if (runs["rates"] > 1).any() else ""
        facts["learning rates"] = ", ".join(f"{rate:g}" for rate in rates) + best
    return {label: text for label, text in facts.items() if text}
