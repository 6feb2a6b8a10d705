"""The report of a study: one self-contained page on which every figure and table of the paper stands beside ours."""

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxprune.analysis import canvas, insides, page, scores, study, tuning
from jaxprune.analysis.claims import FAILS, HOLDS, UNKNOWN, judge
from jaxprune.analysis.layout import Section
from jaxprune.analysis.prose import percent
from jaxprune.analysis.study import Tables

MARKS = {HOLDS: "good", FAILS: "bad", UNKNOWN: "open"}
"""Status -> CSS class."""


def paper_report(place: Path) -> Path:
    """Write `report.html` into the directory of a study from its `tables/*.csv` and `config.yaml` alone.

    Missing runs and tables leave a gap that the page names. Also writes tables/claims.csv. Returns the page's path.
    ValueError when there is no table at all.
    """
    place = Path(place).expanduser()
    tables = study.read_tables(place / "tables")
    if not any(len(table) for table in tables.values()):
        raise ValueError(f"{place}: has no tables/*.csv; `jaxprune report {place}` makes them from finished runs")
    config = place / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    theirs = study.published_tables()
    verdicts, printed = judge(tables), judge(theirs)
    rows = [
        {"item": v.item, "claim": v.claim, "status": v.status, "why": v.why, "published": p.status}
        | {"published_why": p.why if len(theirs[v.table]) else "the paper prints no values"}
        for v, p in zip(verdicts, printed, strict=True)
    ]
    study.write_table(place / "tables" / "claims.csv", rows)
    counts = {status: sum(v.status == status for v in verdicts) for status in MARKS}
    found = every_section(tables, theirs)
    html = page.render(
        "paper.html.j2",
        style=Markup(canvas.style()),
        title="Compressing BERT, run again",
        headline=_headline(counts),
        counts=counts,
        claims=[{**row, "mark": MARKS[row["status"]], "anchor": _anchor(found, row["item"])} for row in rows],
        sections=[_shown(i, section, rows) for i, section in enumerate(found)],
        facts=_facts(tables),
        gaps=_gaps(tables, text),
        config=_without_folders(text),
        csv=sorted(path.name for path in (place / "tables").glob("*.csv")),
    )
    path = place / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def every_section(tables: Tables, theirs: Tables) -> list[Section]:
    """All items of the paper, in its order, and then what it does not have."""
    return [
        scores.scores(tables, theirs),
        scores.transfer(tables, theirs),
        insides.features(tables),
        tuning.masks(tables),
        tuning.movement(tables),
        insides.heads(tables),
        insides.magnitudes(tables),
        insides.maps(tables),
        insides.spread(tables),
        scores.switches(tables),
        insides.churn(tables),
        insides.curves(tables),
    ]


def _headline(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    held, failed, unknown = (counts[status] for status in (HOLDS, FAILS, UNKNOWN))
    return f"Of {total} claims of the paper, {held} hold here, {failed} fail and {unknown} cannot be told."


def _anchor(found: list[Section], item: str) -> str:
    return next((f"s{i}" for i, section in enumerate(found) if item in section.items), "")


def _shown(number: int, section: Section, rows: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "section": section,
        "claims": [{**row, "mark": MARKS[row["status"]]} for row in rows if row["item"] in section.items],
        "pairs": [
            (name, Markup(svg), whose)
            for both in zip(section.ours[: section.pairs], section.theirs, strict=False)
            for (name, svg), whose in zip(both, ("this study", "published"), strict=True)
        ],
        "ours": [(name, Markup(svg)) for name, svg in section.ours[section.pairs :]],
        "theirs": [(name, Markup(svg)) for name, svg in section.theirs[section.pairs if section.ours else 0 :]],
    }


def _facts(tables: Tables) -> dict[str, str]:
    facts: dict[str, str] = {}
    runs, pretrain, memory = tables["runs"], tables["pretrain"], tables["memory"]
    if len(memory):
        dense = memory[memory["name"] == memory["name"].iloc[0]]
        facts["model"] = f"{dense['weights'].sum():,.0f} weights with the pre-training heads"
    if len(pretrain):
        facts["pre-training"] = "; ".join(
            f"{rows['name'].item() if len(rows) == 1 else f'{len(rows)} models'}: {steps:,} steps"
            for steps, rows in pretrain.groupby("steps", sort=False)
        )
        facts["models"] = f"{len(pretrain)}, each trained once: chance in pre-training is not covered by any interval"
    if len(runs):
        facts["fine-tuning runs"] = f"{len(runs)}"
        sizes = runs.drop_duplicates("task").to_dict("records")
        if "train_examples" in runs:
            facts["tasks"] = "; ".join(
                f"{r['task']} {r['train_examples']:,.0f} train, {r['dev_examples']:,.0f} dev examples" for r in sizes
            )
        seeds = runs.groupby("task")["seed"].nunique()
        facts["seeds"] = ", ".join(f"{task} {count}" for task, count in seeds.items())
        rates = sorted(runs["learning_rate"].unique())
        facts["learning rates"] = ", ".join(f"{rate:g}" for rate in rates)
        facts["learning rates"] += " (the best of a cell on the dev set, as in the paper)" if len(rates) > 1 else ""
    return facts


def _gaps(tables: Tables, text: str) -> list[str]:
    """What the config asks for and the tables do not hold."""
    import yaml

    config = yaml.safe_load(text) if text else None
    if not isinstance(config, dict):
        return ["config.yaml is missing, so what was planned is not known."]
    runs, out = tables["runs"], []
    done = {*zip(*(runs[key] for key in ("condition", "variant", "target", "task")))} if len(runs) else set()
    names = [task["name"] for task in config.get("tasks") or []]
    for condition, arm in (config.get("conditions") or {}).items():
        for target in (arm or {}).get("sparsities") or []:
            setting = study.main(condition, float(target))
            if setting == study.main("random", 0.0) and any(
                (*study.main("pruned", 0.0), name) in done for name in names
            ):
                continue
            if missing := [name for name in names if (*setting, name) not in done]:
                out.append(f"{condition.replace('_', ' ')} at {percent(float(target))}: {', '.join(missing)}")
    for name in config.get("switches") or {}:
        if not any(variant == name for _, variant, _, _ in done):
            out.append(f"switch {name}")
    return out


def _without_folders(text: str) -> str:
    """The config without the folders of the machine that ran it."""
    return re.sub(r"(?<![\w./])/(?:[^\s/'\"]+/)+", ".../", text)
