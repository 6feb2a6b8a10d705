"""Whether a study's data carry a claim at all; where they do not, its verdict is shown as `cannot tell`."""

import dataclasses
import math

from jaxprune.analysis.study_tables import Tables, of
from jaxprune.reports.claims import UNKNOWN, Verdict
from jaxprune.reports.number_text import percent

LEARNED = 0.1
"""Masked words that a model fills in rightly, from which its weights are those of a model that has learned words: the
commonest piece alone is about one in twenty."""
OF_TRAINED_WEIGHTS = ("tokens", "weights")
"""Tables whose claims are about the weights of a trained dense model."""
NEAR = 0.05
"""As far as a sparsity that a claim names may lie from the one it is read at."""


def shown(verdict: Verdict, tables: Tables) -> Verdict:
    """The verdict, or `cannot tell` with the reason, where the data cannot carry it."""
    why = _untrained(tables) if verdict.table in OF_TRAINED_WEIGHTS else ""
    if verdict.table == "heads":
        why = _elsewhere(tables, 0.6)
    if not why or verdict.status == UNKNOWN:
        return verdict
    return dataclasses.replace(verdict, status=UNKNOWN, why=f"{why}; {verdict.why}")


def _untrained(tables: Tables) -> str:
    rows = of(tables["pretrain"], variant="dense")
    right = float(rows["mlm_accuracy"].iloc[0]) if len(rows) and "mlm_accuracy" in rows else math.nan
    if not right < LEARNED:  # not known is no reason
        return ""
    return f"the dense model fills in {percent(round(right, 3))} of the masked words: its weights are hardly trained"


def _elsewhere(tables: Tables, named: float) -> str:
    targets = sorted({*of(tables["heads"], variant="pruned")["target"]} - {0.0})
    near = any(abs(target - named) < NEAR for target in targets)
    return "" if near or not targets else f"no sparsity near {percent(named)} was measured"
