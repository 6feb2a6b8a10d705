"""Every page in headless Chromium, narrow and wide, light and dark: nothing cut off, overprinted or complained of."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import test_reports_runs
import test_reports_study
from workflow import ROOT

from jaxprune.reports.runs_page import runs_page
from jaxprune.reports.study_page import study_page
from jaxprune.reports.workdir_page import workdir_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium"),
]
WIDTHS = (420, 1280)
PROBE = """
<script>
function looked(frame) {
  const inside = frame.contentDocument, root = inside.documentElement, seen = [];
  const words = element => element.textContent.trim().slice(0, 60);
  if (root.scrollWidth > root.clientWidth) seen.push(`${root.scrollWidth} pixels wide`);
  for (const element of inside.querySelectorAll('h1, h2, h3, p, li, dd, th, td, figure, svg text')) {
    if (element.closest('.scroll, pre, details')) continue;
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > root.clientWidth + 1 || box.left < -1)) seen.push(`cut off: ${words(element)}`);
  }
  for (const table of inside.querySelectorAll('.scroll table'))
    if (root.clientWidth > 1000 && table.offsetWidth > table.closest('.scroll').clientWidth + 1)
      seen.push(`a table of ${table.offsetWidth} pixels: ${words(table)}`);
  for (const svg of inside.querySelectorAll('svg')) {
    const slanted = /rotate\\((?!0\\)|-0\\)|0 |-0 )/;
    const texts = [...svg.querySelectorAll('text')].filter(text => !slanted.test(text.outerHTML));
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 0.35 * Math.min(a.height, b.height))
        seen.push(`overprinted: ${words(texts[i])} and ${words(texts[j])} in ${svg.getAttribute('aria-label')}`);
    }));
  }
  return {page: frame.src, width: root.clientWidth, seen,
          dark: frame.contentWindow.matchMedia('(prefers-color-scheme: dark)').matches,
          texts: inside.querySelectorAll('svg text').length};
}
onload = () => { document.body.textContent = JSON.stringify([...document.querySelectorAll('iframe')].map(looked)); };
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, and the published ones."""
    folder = tmp_path_factory.mktemp("pages")
    runs, scores = test_reports_runs.records()
    plan = {t: {100: t / 2, 200: t} for t in test_reports_runs.PAPER if t}
    facts = {"versions": "jaxprune 0.1.0, jax 0.10.2, Python 3.11.7", "hardware": "2 cores"}
    more = {"plan": plan, "facts": facts, "timings": {"all of it": 3.0}, "config": "a: 1"}
    demo = runs_page(runs, scores, out_dir=folder / "demo", title="A sweep", **more)
    tables = test_reports_study.write(folder / "study", test_reports_study.synthetic())
    study = study_page(tables, facts, ["jaxprune study c.yaml --workdir study"])
    single = [
        {
            "name": f"some/long/name/of/a/run/recover-with-much-in-its-name-{run['target']:g}",
            "row": {"steps": "500", "result": "loss 5.123 nats, 20.0 % of the masked words right"},
            "curve": run["curve"],
            "leaves": run["leaf_sparsity"],
            "sparsity": run["target"],
        }
        for run in runs[:4]
    ]
    several = workdir_page(folder / "workdir.html", single, title="runs", headline="Four runs.", warnings=["Look."])
    return [demo, study, several, *sorted((ROOT / "results").glob("*/report.html"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_or_overprinted(pages, tmp_path, scheme):
    frames = [
        f'<iframe src="{page.as_uri()}" style="width: {width}px; height: 900px; border: 0"></iframe>'
        for page in pages
        for width in WIDTHS
    ]
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{PROBE}</body>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    flags += ["--enable-logging=stderr", "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--blink-settings=preferredColorScheme=0"] * (scheme == "dark")
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=240, check=False
    )
    found = re.search(r"<body>(\[.*\])</body>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    looked = json.loads(html.unescape(found[1]))
    assert [frame["width"] for frame in looked] == [*WIDTHS] * len(pages)
    assert all(frame["dark"] == (scheme == "dark") and frame["texts"] > 20 for frame in looked)
    names = [f"{Path(frame['page']).parent.name} at {frame['width']}" for frame in looked]
    problems = {name: frame["seen"] for name, frame in zip(names, looked) if frame["seen"]}
    assert not problems, json.dumps(problems, indent=1)
    assert not re.findall(r"CONSOLE.*", done.stderr)
