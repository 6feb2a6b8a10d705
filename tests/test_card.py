"""The card of a run: whose masks it holds, and nothing of the machine that wrote it."""

import numpy as np
import pytest
import yaml

from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.load import validate
from jaxprune.data.tasks import TASKS
from jaxprune.experiments.card import card_of_pretraining, card_of_task

HOME = "/home/alice/secret"
START = {"init_from": f"{HOME}/runs/base/"}
MASKS = {
    "The masks are those of runs/base, held": {},
    "The masks are those of other/run, held": {"masks_from": [f"{HOME}/other/run"]},
    "The masks are those of other/a and bert-base, held": {"masks_from": [f"{HOME}/other/a", "bert-base"]},
    "The masks are those of x/a or x/b, held": {"masks_from": ["/x/a", "/x/b"], "masks_kept_by": "any"},
}
OWN = {
    "name": "mine",
    "train": f"{HOME}/data/train.csv",
    "dev_fraction": 0.2,
    "text": "text",
    "label": "label",
    "labels": ["/a/b/c", "/d/b/c"],
}


def arrays(*, kept: bool):
    params = {"encoder": {"layer_00": {"output": {"kernel": np.ones((2, 2), np.float32)}}}}
    return params, {"encoder": {"layer_00": {"output": {"kernel": np.array([[kept, True], [True, True]])}}}}


@pytest.mark.parametrize("words", MASKS)
def test_whose_masks_they_are(words):
    cfg = validate(PretrainConfig, START | {"data": {"path": f"{HOME}/data/prepared"}} | MASKS[words], "c.yaml")
    card = card_of_pretraining(cfg, *arrays(kept=False), {"dev": {"loss": 1.0}, "tokens": 1, "steps": 1})
    assert words in card and "# Pre-trained on from runs/base\n" in card
    assert "alice" not in card and "path: data/prepared" in card
    whole = card_of_pretraining(cfg, *arrays(kept=True), {"dev": {"loss": 1.0}, "tokens": 1, "steps": 1})
    assert "masks are those" not in whole


def test_a_task_s_files_are_named_without_their_folders_and_labels_stay():
    teacher = {"source": f"{HOME}/runs/teacher"}
    content = START | {"tasks": [OWN], "tokenizer": f"{HOME}/runs/grid/tokenizer", "glue": f"{HOME}/glue_data"}
    cfg = validate(FinetuneConfig, content | {"teacher": teacher}, "c.yaml")
    result = {"dev_examples": 1, "train_examples": 1, "steps": 1, "learning_rate": 1e-4, "seed": 0}
    result |= dict.fromkeys(TASKS["SST-2"].metrics, 0.5)
    card = card_of_task(cfg, TASKS["SST-2"], "mean", *arrays(kept=False), result)
    assert "alice" not in card and "# SST-2, fine-tuned from runs/base\n" in card
    written = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    (task,) = written["tasks"]
    assert (task["train"], task["labels"]) == ("data/train.csv", OWN["labels"])
    assert (written["tokenizer"], written["teacher"]["source"]) == ("grid/tokenizer", "runs/teacher")
    assert validate(FinetuneConfig, written, "c.yaml").epochs == cfg.epochs
