"""The report: what it must show, what it must not do, and a verdict that follows from the numbers."""

import csv
import html.parser
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxprune.analysis.pruning_cost import FITTING, FREE, INFORMATION, pruning_cost
from jaxprune.errors import UserError
from jaxprune.reports.charts import Series, curves, matrix_map
from jaxprune.reports.regimes import headline
from jaxprune.reports.runs_page import runs_page
from jaxprune.reports.svg import category, spaced

KINDS = ("attention/query", "attention/key", "attention/value", "attention/output", "intermediate", "output")
# Gordon et al. 2020, Table 1, "pruned during pre-training": pre-training loss, mean accuracy, mean training loss.
PAPER = {
    0.0: (1.82, 0.872, 0.157),
    0.1: (1.82, 0.872, 0.160),
    0.2: (1.83, 0.871, 0.160),
    0.3: (1.86, 0.871, 0.169),
    0.4: (1.93, 0.867, 0.156),
    0.5: (2.03, 0.862, 0.180),
    0.6: (2.25, 0.856, 0.230),
    0.7: (2.62, 0.839, 0.271),
    0.8: (3.44, 0.811, 0.348),
    0.9: (5.83, 0.734, 0.498),
}


def records(
    table: dict[float, tuple[float, float, float]] = PAPER, noise: float = 0.002, seeds: int = 3
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs and scores of two tasks whose seeds lie `noise` apart, symmetric about the table's numbers, and in the other
    order at every second sparsity: what a seed does to all sparsities alike is no noise."""
    runs = [
        {
            "target": target,
            "sparsity": target + 1e-5 * (target > 0),
            "dev_loss": loss,
            "dev_mlm_loss": loss - 0.31,
            "dev_nsp_loss": 0.31,
            "mlm_accuracy": 0.4321 - target / 7,
            "nsp_accuracy": None,
            "seconds": 61.25 + target,
            "curve": [
                {"step": s, "loss": loss + 3 / (s + 1), "sparsity": min(target, s / 400)} for s in range(0, 500, 9)
            ],
            "leaf_sparsity": {
                **{f"encoder/layer_{i:02d}/{k}/kernel": abs(target - 0.01 * i) for i in range(2) for k in KINDS},
                "embeddings/word/embedding": target,
                "pooler/kernel": target,
            },
        }
        for target, (loss, _, _) in table.items()
    ]
    scores = [
        {
            "target": target,
            "task": task,
            "seed": seed,
            "metric": "accuracy",
            "score": score + shift + noise * (seed - (seeds - 1) / 2) * (-1) ** place,
            "train_loss": train + noise * (seed - (seeds - 1) / 2) * (-1) ** place,
            "majority": 0.5,
        }
        for place, (target, (_, score, train)) in enumerate(table.items())
        for task, shift in (("SST-2", 0.05), ("CoLA", -0.05))
        for seed in range(seeds)
    ]
    return runs, scores


def test_paper_falls_into_its_pruning_cost() -> None:
    verdict = pruning_cost(*records())
    assert verdict.why == "" and verdict.tasks == ("SST-2", "CoLA") and verdict.left_out == {}
    assert verdict.leads == pytest.approx({"SST-2": 0.422, "CoLA": 0.322})
    assert verdict.matters() == pytest.approx(0.0093) and verdict.matters(["CoLA"]) == pytest.approx(0.00805)
    assert verdict.free_up_to == 0.4
    assert verdict.span(FREE) == (0.1, 0.2, 0.3, 0.4)
    assert verdict.span(INFORMATION) == (0.5, 0.6)
    assert verdict.span(FITTING) == (0.7, 0.8, 0.9)
    text = headline(verdict).replace("\N{NO-BREAK SPACE}", " ")
    assert text == (
        "Pruning up to 40 % is free within the noise; 50 % and 60 % lose pre-training knowledge; "
        "70 % to 90 % also hamper fitting the tasks."
    )


def test_noise_by_hand() -> None:
    """One task, two seeds, two targets. Seed by seed the change is -0.05 -+ 0.004: variance 2 d^2 on one degree of
    freedom, t = 12.706, over two seeds. What the seeds do to both targets alike, 0.1, does not count."""
    runs = [{"target": t, "dev_loss": 2.0 + t} for t in (0.0, 0.5)]
    scores = [
        {"target": t, "task": "a", "seed": s, "metric": "m", "score": 0.8 - 0.1 * t + d, "majority": 0.1}
        for t, sign in ((0.0, -1), (0.5, 1))
        for s, d in enumerate((0.05 + 0.002 * sign, -0.05 - 0.002 * sign))
    ]
    level = pruning_cost(runs, scores).levels[1]
    assert level.score is not None and level.train_loss is None
    assert level.score.mean == pytest.approx(-0.05)
    assert level.score.half == pytest.approx(12.706205 * math.sqrt(2 * 0.004**2 / 2), rel=1e-5)
    assert level.dev_loss_change == pytest.approx(0.5)


def test_dev_losses_are_compared_seed_by_seed() -> None:
    """A level pre-trained once stands against the unpruned run of its own seed, not against the mean of three."""
    rows = [{"target": 0.0, "dev_loss": 2.0 - 0.1 * s, "seed": s} for s in range(3)]
    rows += [{"target": 0.3, "dev_loss": 2.03, "seed": 0}, {"target": 0.9, "dev_loss": 3.0, "seed": 7}]
    levels = pruning_cost(rows, []).levels
    assert [level.dev_loss_change for level in levels] == pytest.approx([0, 0.03, 1.1])


def test_other_models_of_the_study_tell_chance_too() -> None:
    """Two seeds of two targets leave one degree of freedom; three other models with the same seeds add three."""
    runs, scores = [{"target": t, "dev_loss": 2.0} for t in (0.0, 0.5)], []
    for t, sign in ((0.0, 1), (0.5, -1)):
        scores += [{"target": t, "task": "a", "seed": s, "metric": "m", "score": 0.8 + 0.01 * sign * s} for s in (0, 1)]
    others = [
        {**row, "condition": "random", "variant": f"v{i}", "score": 0.5}
        for i in range(3)
        for row in scores
        if not row["target"]
    ]
    alone, more = (pruning_cost(runs, scores, rest).levels[1].score for rest in ((), others))
    assert alone is not None and more is not None and alone.mean == more.mean
    # Residuals of +-0.005 about setting and seed, four of them, on one degree of freedom; on four with the others,
    # whose seeds do nothing.
    assert alone.half == pytest.approx(12.706205 * 0.01, rel=1e-5)
    assert more.half == pytest.approx(2.776445 * 0.005, rel=1e-5)


def test_a_task_that_does_not_count_says_why() -> None:
    runs, scores = records()
    scores += [{**scores[-1], "task": "late", "target": 0.5}, {**scores[0], "task": "once", "target": 0.0}]
    scores = [row for row in scores if (row["task"], row["target"]) != ("CoLA", 0.9)]
    cost = pruning_cost(runs, scores)
    assert cost.left_out == {
        "late": "not scored on the unpruned model",
        "once": "one seed, so chance cannot be told from an effect",
    }
    assert cost.levels[-1].tasks == ("SST-2",) and cost.levels[1].tasks == ("SST-2", "CoLA")
    # At 90 % what counts is a share of what SST-2 alone has to lose.
    assert cost.matters(cost.levels[-1].tasks) == pytest.approx(0.025 * 0.422)


def test_cannot_tell(tmp_path: Path) -> None:
    single = records(seeds=1)
    one_seed = pruning_cost(*single)
    assert "one seed" in one_seed.why and math.isnan(one_seed.free_up_to)
    assert one_seed.levels[-1].score is not None and one_seed.levels[-1].score.mean == pytest.approx(-0.138)
    runs, scores = records()
    assert "no run is unpruned" in pruning_cost(runs[1:], scores).why
    assert "no task was scored" in pruning_cost(runs, []).why
    chance = pruning_cost(runs, [{**s, "majority": 0.95} for s in scores])
    assert "SST-2, CoLA: the unpruned model does not beat the majority line" in chance.why
    half = pruning_cost(runs, [{**s, "majority": 0.95 if s["task"] == "CoLA" else 0.5} for s in scores])
    assert half.tasks == ("SST-2",) and [*half.left_out] == ["CoLA"] and half.free_up_to == 0.5
    wide = records({0.0: (2.0, 0.60, 0.1), 0.5: (2.0, 0.58, 0.1)}, noise=0.035)
    noisy = pruning_cost(*wide)
    assert noisy.levels[1].regime is None and "a twentieth of what there is to lose" in noisy.levels[1].why
    assert "the seeds do not tell" in headline(noisy)
    for (rows, scored), words in (
        (single, "A verdict is not possible: every task was fine-tuned with one seed"),
        (wide, "Each sparsity was pre-trained once, so chance in pre-training itself is not covered."),
        ((runs[:1], scores), "Here: Only the unpruned model was measured."),
        ((runs[1:], scores), "Here: Cannot tell what pruning costs: no run is unpruned"),
        ((runs + runs[:1], scores), "and than 0.9 points, a fortieth of what can be lost"),
        (
            (runs, [{**s, "majority": 0.95 * (s["task"] == "CoLA")} for s in scores]),
            "Left out: CoLA: the unpruned model does not beat",
        ),
    ):
        text = runs_page(rows, scored, out_dir=tmp_path, title="x").read_text(encoding="utf-8")
        paragraphs = re.findall(r"<p>(.*?)</p>", text[: text.index("<figure>")], re.DOTALL)[:2]
        assert all(paragraphs) and words in " ".join(paragraphs[1].split())
        sentence = headline(pruning_cost(rows, scored))
        assert sentence.endswith(".") and sentence in Page(text).text
    assert "was pre-trained once" not in runs_page(runs + runs[:1], scores, out_dir=tmp_path, title="x").read_text()


class Page(html.parser.HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_page_shows_everything(tmp_path: Path) -> None:
    runs, scores = records()
    path = runs_page(
        runs,
        scores,
        out_dir=tmp_path / "new" / "place",
        title="A made-up study",
        plan={t: {100: t / 2, 200: t} for t in PAPER if t},
        facts={"Hardware": "2 CPU cores", "Tokens": "2,543,210"},
        timings={"pre-training": 200.0, "fine-tuning": 50.5},
        commands=["jaxprune demo --seed 1"],
        config="seed: 1\nsteps: 600\n",
        notes=["Task X uses a subset."],
    )
    assert path == tmp_path / "new" / "place" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for run in runs:
        for key in ("target", "sparsity", "dev_loss", "dev_mlm_loss", "dev_nsp_loss", "mlm_accuracy", "seconds"):
            assert f"{run[key]:.4f}" in page.text, (key, run[key])
        for value in run["leaf_sparsity"].values() if run["target"] else ():
            assert f"{100 * value:.1f}" in page.text
    for row in scores:
        assert f"{row['score']:.4f}" in page.text and f"{row['train_loss']:.4f}" in page.text
    for text in (
        *("A made-up study", "2 CPU cores", "2,543,210", "jaxprune demo --seed 1", "seed: 1", "Task X uses a subset."),
        *("250 s (4.2 min)", "200 s", "50.5 s", "majority class", "SST-2", "attention output", "layer 1"),
        *("dev loss, MLM + NSP (nats)", "training loss after fine-tuning (nats)", "sparsity (%)", "step"),
    ):
        assert text in page.text, text
    # loss, scores, training loss; plan and loss over steps; one map for each pruned run
    assert page.tags.count("svg") == 3 + 2 + 9
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_page_stands_alone(tmp_path: Path) -> None:
    text = runs_page(*records(), out_dir=tmp_path, title="x").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    outside = [v for n, v in page.attributes if "://" in v and not n.startswith("xmlns")]
    assert outside == []
    targets = {v for n, v in page.attributes if n == "href"}
    assert {v for v in targets if not v.startswith("#")} <= {p.name for p in tmp_path.iterdir()}
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1 and "url(" not in style[0] and "@import" not in style[0]
    assert "prefers-color-scheme: dark" in style[0]
    used = set(re.findall(r"var\(--([a-z0-9]+)", text))
    assert used <= set(re.findall(r"--([a-z0-9]+):", style[0]))
    assert not re.search(r"#0[12][0-9a-f]{2}fe", text)


def test_names_are_escaped(tmp_path: Path) -> None:
    runs, scores = records({0.0: (2.0, 0.9, 0.1), 0.5: (2.1, 0.8, 0.2)})
    evil = '<script>alert("1")</script> $x^2$ &amp;'
    scores = [{**s, "task": evil + s["task"]} for s in scores]
    runs = [{**r, "leaf_sparsity": {f"a/{evil}/kernel": 0.5}, "note": evil} for r in runs]
    text = runs_page(
        *(runs, scores),
        out_dir=tmp_path,
        title=evil,
        facts={evil: evil},
        timings={evil: 1.0},
        commands=[evil],
        config=evil,
        notes=[evil],
    ).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert "$x^2$" in text


def test_csv_files_keep_full_precision(tmp_path: Path) -> None:
    runs, scores = records({0.0: (2.0, 0.9, 0.1), 0.5: (2.123456789, 0.8, 0.15)})
    runs_page(runs, scores, out_dir=tmp_path, title="x", plan={10: 0.25, 20: 0.5})
    tables = {p.stem: list(csv.DictReader(p.read_text(encoding="utf-8").splitlines())) for p in tmp_path.glob("*.csv")}
    assert set(tables) == {"runs", "scores", "verdict", "curves", "matrices", "plan"}
    assert float(tables["runs"][1]["dev_loss"]) == 2.123456789
    assert [float(row["score"]) for row in tables["scores"]] == [row["score"] for row in scores]
    assert len(tables["curves"]) == 2 * 56 and len(tables["matrices"]) == 2 * 14
    assert tables["plan"] == [
        {"target": "0.5", "step": "10", "sparsity": "0.25"},
        {"target": "0.5", "step": "20", "sparsity": "0.5"},
    ]
    assert tables["verdict"][1]["regime"] == "Knowledge lost"


def test_same_input_same_bytes_and_frames_are_welcome(tmp_path: Path) -> None:
    import pandas

    runs, scores = records({0.0: (2.0, 0.9, 0.1), 0.5: (2.1, 0.8, 0.2)})
    first = runs_page(runs, scores, out_dir=tmp_path / "a", title="x").read_bytes()
    assert runs_page(runs, scores, out_dir=tmp_path / "b", title="x").read_bytes() == first
    frame = runs_page(pandas.DataFrame(runs), pandas.DataFrame(scores), out_dir=tmp_path / "c", title="x").read_bytes()
    assert len(frame) == len(first)


def test_little_data_still_makes_a_page(tmp_path: Path) -> None:
    bare = [{"target": 0.0, "sparsity": 0.0, "dev_loss": 3.0}]
    Page(runs_page(bare, out_dir=tmp_path / "a", title="x").read_text(encoding="utf-8"))
    bare.append({"target": 0.5, "sparsity": 0.5, "dev_loss": 3.5, "leaf_sparsity": None, "curve": None})  # pyright: ignore
    page = Page(runs_page(bare, out_dir=tmp_path / "b", title="x").read_text(encoding="utf-8"))
    assert "Cannot tell what pruning costs: no task was scored" in page.text
    assert page.tags.count("svg") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dev_loss": float("nan")}, "runs[1]: dev_loss = nan is not a finite number"),
        ({"dev_loss": "3"}, "runs[1]: dev_loss = '3' is not a finite number"),
        ({"target": 50.0}, "runs[1]: target = 50.0 is outside [0, 1]; sparsity is a fraction"),
    ],
)
def test_bad_records(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    runs, scores = records()
    runs[1].update(change)
    with pytest.raises(UserError) as error:
        runs_page(runs, scores, out_dir=tmp_path / "out", title="x")
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()


def test_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\[0\]: no key 'seed'; it has target, task"):
        runs_page(records()[0], [{"target": 0.0, "task": "x"}], out_dir=tmp_path / "out", title="x")
    with pytest.raises(UserError, match="runs: no records"):
        runs_page([], out_dir=tmp_path / "out", title="x")
    assert not (tmp_path / "out").exists()


def test_matrix_names_are_told_apart() -> None:
    paths = {f"encoder/layer_00/{kind}/kernel": 0.5 for kind in KINDS}
    svg = matrix_map("t", {**paths, "pooler/kernel": 0.5}, target=0.5, spread=0.1).svg
    for name in ("query", "attention output", "intermediate", "output", "pooler"):
        assert f">{name}<" in svg or f">{name}  " in svg, name


def test_a_curve_is_drawn_as_it_says() -> None:
    x, y = [0.0, 0.5, 0.9], [0.8, 0.7, 0.5]
    dots, line = (curves("t", [Series("n", x, y, category(3), line=on)], "share (%)").svg for on in (False, True))
    stroke = re.compile(r"fill: none; stroke: var\(--c3, #[0-9a-f]{6}\)")
    assert stroke.search(line) and not stroke.search(dots)
    assert dots.count("<use") - line.count("<use") == 0 and ">n<" in dots
    for text in (">90<", ">50<", ">0<", ">80<", ">60<", ">sparsity (% of the prunable weights)<"):
        assert text in line, text  # fractions times 100 on both axes, x ticks where something was measured
    plain = curves("t", [Series("", [1.0, 2.0, 4.0], y)], "loss (nats)", "step").svg
    assert ">0.8<" in plain and ">4<" in plain and ">80<" not in plain


def test_first_steps_may_leave_an_axis_and_a_later_peak_does_not() -> None:
    y = [200.0, 100.0, *[20.0] * 10, 60.0, *[20.0] * 8]
    for first, ticks in ((0.1, {">20<", ">60<"}), (0.0, {">50<", ">200<"})):
        svg = curves("t", [Series("", [x / 2 for x in range(21)], y)], "loss (nats)", "step", first=first).svg
        assert all(tick in svg for tick in ticks) and (">200<" in svg) == (not first), first


def test_labels_keep_their_distance() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        heights = rng.uniform(0, 1, 6).tolist()
        placed = spaced(heights, 0.1, 0.0, 1.0)
        ranks = np.argsort(heights)
        assert (np.diff(np.asarray(placed)[ranks]) > 0.1 - 1e-9).all()
        assert min(placed) > -1e-9 and max(placed) < 1 + 1e-9
    assert spaced([0.2, 0.8], 0.1, 0.0, 1.0) == pytest.approx([0.2, 0.8])
