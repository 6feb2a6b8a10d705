"""`masks_from`: the masks of other runs over the weights of a start: lottery tickets, transfer, union, intersection."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_folders import drawn_masks, tiny_model

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.load import validate
from jaxprune.errors import UserError
from jaxprune.experiments.weights import masked_at_start, read_weights, with_masks_of
from jaxprune.models.folder import read_folder, write_masked


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense model, and two that keep 60 % and 30 % of it."""
    root = tmp_path_factory.mktemp("folders")
    tiny_model().save_pretrained(root / "dense")
    for name, seed, share in (("a", 1, 0.6), ("b", 2, 0.3)):
        write_masked(root / "dense", root / name, drawn_masks(root / "dense", seed, share=share))
    return root


def masked(folders, *names, **more):
    cfg = FinetuneConfig(init_from=str(folders / "dense"), masks_from=tuple(str(folders / n) for n in names), **more)
    return with_masks_of(read_weights(cfg.init_from), cfg)


def flat(masks):
    return {path: mask for path, mask in flatten_dict(masks, sep="/").items() if mask is not None}


def test_intersection_and_union(folders):
    a, b = (flat(read_weights(str(folders / name)).masks) for name in "ab")
    for more, join in (({}, np.logical_and), ({"masks_kept_by": "any"}, np.logical_or)):
        joined = flat(masked(folders, "a", "b", **more).masks)
        assert joined.keys() == a.keys() == b.keys() and len(a) > 12
        for path, mask in joined.items():
            np.testing.assert_array_equal(mask, join(a[path], b[path]))
    weights = masked(folders, "a")
    for path, mask in flat(weights.masks).items():
        np.testing.assert_array_equal(mask, a[path])
    dense = flatten_dict(read_weights(str(folders / "dense")).params, sep="/")
    for path, leaf in flatten_dict(weights.params, sep="/").items():
        np.testing.assert_array_equal(leaf, dense[path])


def test_a_leaf_that_one_source_does_not_mask_is_kept_whole_by_it(folders, tmp_path):
    masks = flatten_dict(drawn_masks(folders / "dense", 3), sep="/")
    path, bias = "encoder/layer_00/intermediate/kernel", "encoder/layer_00/intermediate/bias"
    some = {key: masks[path] if key == path else np.arange(24) > 11 if key == bias else None for key in masks}
    from flax.traverse_util import unflatten_dict

    write_masked(folders / "dense", tmp_path / "c", unflatten_dict(some, sep="/"))
    for kept_by, size in (("all", len(flat(read_weights(str(folders / "a")).masks)) + 1), ("any", 1)):
        cfg = FinetuneConfig(
            init_from=str(folders / "dense"),
            masks_from=(str(folders / "a"), str(tmp_path / "c")),
            masks_kept_by=kept_by,
        )
        assert len(flat(with_masks_of(read_weights(cfg.init_from), cfg).masks)) == size
    beyond = masked_at_start(cfg, read_folder(folders / "dense", head=None).model, "classification")
    assert beyond == [bias]  # so that the run holds it


def test_what_does_not_fit_is_one_line(folders, tmp_path):
    tiny_model(intermediate_size=32).save_pretrained(tmp_path / "wide")
    write_masked(tmp_path / "wide", tmp_path / "other", drawn_masks(tmp_path / "wide"))
    for source, message in (
        (tmp_path / "other", r"has a mask of .*/kernel of shape \(\d+, \d+\), which fits no weights of .*dense"),
        (folders / "dense", "has no masks; name a run"),
    ):
        cfg = FinetuneConfig(init_from=str(folders / "dense"), masks_from=(str(source),))
        with pytest.raises(UserError, match=message):
            with_masks_of(read_weights(cfg.init_from), cfg)
    for kind in (PretrainConfig, FinetuneConfig):
        with pytest.raises(UserError, match="masks = none lifts what masks_from"):
            validate(kind, {"init_from": "x", "masks_from": ["y"], "masks": "none"}, "here")
    with pytest.raises(UserError, match=r"masks_from = \['y'\] needs init_from"):
        validate(PretrainConfig, {"masks_from": ["y"]}, "here")


@pytest.mark.slow
def test_a_ticket_from_config_alone(tiny, pretrained, tmp_path):
    """Weights of an early checkpoint under the masks that the run ended with: rewound, and trained anew."""
    start = sorted(pretrained.glob("checkpoints/*"), key=lambda path: int(path.name))[0]
    path = tiny.pretrain_yaml(
        tmp_path / "c.yaml", steps=2, init_from=str(start), masks_from=[str(pretrained)], prune={"sparsity": 0}
    )
    assert main(["pretrain", str(path), "--workdir", str(tmp_path / "ticket")]) == 0
    theirs, ours = (read_folder(run / "hf", head=None) for run in (pretrained, tmp_path / "ticket"))
    for path, mask in flat(theirs.masks).items():
        np.testing.assert_array_equal(mask, flat(ours.masks)[path])
        assert not flatten_dict(ours.params, sep="/")[path][~mask].any()
    assert json.loads((tmp_path / "ticket/result.json").read_text())["sparsity"] == pytest.approx(0.7, abs=1e-3)
