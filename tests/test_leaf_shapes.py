"""Shapes from one traced layer are those of the whole model."""

import jax
import pytest
from flax.traverse_util import flatten_dict
from test_architectures import DISTINCT, config

from jaxprune.models.model import HEADS
from jaxprune.models.tensors import leaf_shapes


@DISTINCT
@pytest.mark.parametrize("head", HEADS)
def test_shapes_are_those_of_init(record, head):
    cfg, labels = config(record), {"classification": 3, "multi_label": 2}.get(head, 0)
    whole = flatten_dict(
        jax.eval_shape(record.build(cfg, head=head, num_labels=labels).init, jax.random.key(0)), sep="/"
    )
    shapes = leaf_shapes(record, cfg, head=head, num_labels=labels)
    assert [*shapes.items()] == [*whole.items()]


@DISTINCT
def test_layers_of_other_names_are_traced_whole(record, monkeypatch):
    monkeypatch.setattr("jaxprune.models.tensors.layer_name", "block_{}".format)
    cfg = config(record, 3)
    whole = flatten_dict(jax.eval_shape(record.build(cfg, head="pretraining").init, jax.random.key(0)), sep="/")
    assert leaf_shapes(record, cfg, head="pretraining") == whole
