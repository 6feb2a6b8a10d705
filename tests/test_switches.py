"""The switches between the published study and its text: each one config value, checked against an independent form."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.config import ModelConfig, OptimizerConfig, PretrainConfig, PruneConfig
from jaxprune.experiments.pruning_plan import plan_of
from jaxprune.experiments.weights import shaped, source_model
from jaxprune.models.bert import bert
from jaxprune.models.folder import read_config, read_folder, write_folder
from jaxprune.training.optimizer import adamw, learning_rate_at, relative_rate, with_peak_rate

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "initializer_range": 0.2,
}
PLAIN, RELU = ModelConfig(**SHAPE), ModelConfig(**SHAPE, sublayer_relu=True)


QUICK = {"xla_backend_optimization_level": 0}


@cache
def _init():
    return jax.jit(bert(PLAIN, head="pretraining").init, compiler_options=QUICK)


def _params(seed, **outputs):
    """Random params; each sub-layer's output projection with its kernel or bias replaced by a constant."""
    params = _init()(jax.random.key(seed))
    for layer in params["encoder"].values():
        for part in (layer["attention"]["output"], layer["output"]):
            for name, value in outputs.items():
                part[name] = jnp.full_like(part[name], value)
    return params


@cache
def _forward(cfg):
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size, (3, 8)).astype(np.int32)
    batch = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    apply = bert(cfg, head="pretraining").apply
    return jax.jit(lambda p: jnp.stack(apply(p, batch, hidden_states=True)["hidden_states"]), compiler_options=QUICK)


def test_sublayer_relu_cuts_what_is_negative_and_only_that():
    """Far below 0 both sub-layers fall silent; far above it nothing changes; and it does change a usual network."""
    plain, relu = _forward(PLAIN), _forward(RELU)
    for seed in range(3):
        silent = plain(_params(seed, kernel=0.0, bias=0.0))
        np.testing.assert_allclose(relu(_params(seed, bias=-100.0)), silent, rtol=1e-4, atol=1e-5)
        high = _params(seed, bias=100.0)
        np.testing.assert_allclose(relu(high), plain(high), rtol=1e-4, atol=1e-5)
        usual = _params(seed)
        assert np.abs(relu(usual) - plain(usual))[1:].max() > 1e-2


def test_sublayer_relu_stays_with_the_weights(tmp_path):
    write_folder(tmp_path, RELU, jax.device_get(_params(0)), head="pretraining")
    assert json.loads((tmp_path / "config.json").read_text())["sublayer_relu"] is True
    assert "transformers" in (tmp_path / "README.md").read_text()
    assert read_config(tmp_path).sublayer_relu and read_folder(tmp_path, head="pretraining").model.sublayer_relu
    assert shaped(ModelConfig(), source_model(str(tmp_path), ""), "init_from").sublayer_relu
    write_folder(tmp_path / "plain", PLAIN, jax.device_get(_params(0)), head="pretraining")
    assert "sublayer_relu" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    wanted = RELU.model_copy(update={"hidden_act": "gelu_new"})
    assert shaped(wanted, source_model(str(tmp_path / "plain"), ""), "init_from") == wanted


def test_sawtooth_is_the_published_learning_rate():
    """19 jobs of 5,000 steps: the k-th falls from 2e-5 / k to 0, as an execution of the original code measured."""
    cfg = OptimizerConfig(learning_rate=2e-5, decay="sawtooth", period=5000)
    rate = learning_rate_at(cfg, 95_000)
    every = 2e-5 * np.asarray(jax.jit(jax.vmap(relative_rate(cfg, 95_000)))(jnp.arange(95_000)), np.float64)
    for chunk in range(1, 20):
        begin, end = 5000 * (chunk - 1), 5000 * chunk
        assert rate(begin) == pytest.approx(2e-5 / chunk, rel=1e-5)
        assert rate(end - 1) == pytest.approx(2e-5 / end, rel=1e-2)
        assert every[begin:end].mean() == pytest.approx(1e-5 / chunk, rel=1e-3)
    assert every.sum() == pytest.approx(0.177, abs=5e-4)  # 5.4 times below one decay over all steps
    assert every[:10_000].sum() / every.sum() == pytest.approx(0.42, abs=5e-3)


def test_sawtooth_warms_up_without_a_shift_and_counts_on():
    cfg = OptimizerConfig(decay="sawtooth", period=8, warmup_steps=3)
    expected = [0, 1 / 3, 2 / 3, *(1 - t / 8 for t in range(3, 8)), *(1 - t / 16 for t in range(8, 16))]
    np.testing.assert_allclose([relative_rate(cfg, 16)(t) for t in range(16)], expected, rtol=1e-6)
    later = OptimizerConfig(decay="sawtooth", period=8, offset=16)
    np.testing.assert_allclose(
        [relative_rate(later, 8)(t) for t in range(8)], [1 - t / 24 for t in range(16, 24)], rtol=1e-6
    )


def test_sawtooth_drives_the_update():
    """Without decay or clipping, a constant gradient moves a weight by the learning rate itself."""
    cfg = OptimizerConfig(decay="sawtooth", period=4, weight_decay=0, clip_norm=0)
    tx = adamw(cfg, 12)
    params = {"kernel": jnp.zeros(())}
    state, moves = with_peak_rate(tx.init(params), 0.5), []
    for _ in range(12):
        update, state = jax.jit(tx.update)({"kernel": jnp.ones(())}, state, params)
        moves.append(-float(update["kernel"]))
    expected = [0.5 * (1 - t / (4 * (t // 4 + 1))) for t in range(12)]
    np.testing.assert_allclose(moves, expected, rtol=1e-4)


def test_refresh_goes_on_to_the_last_step():
    prune = {"sparsity": 0.7, "begin": 2, "end": 9, "every": 3, "mode": "soft"}
    frozen, forever = (
        plan_of(PretrainConfig(steps=16, prune=prune | {"refresh": refresh}).prune, 16, "steps")
        for refresh in (False, True)
    )
    assert sorted(frozen) == [2, 5, 8, 9]
    assert sorted(forever) == [2, 5, 8, 9, 11, 14, 16]
    assert all(forever[step] == target for step, target in frozen.items())
    assert {forever[step] for step in (9, 11, 14, 16)} == {0.7}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (PruneConfig, {"refresh": True}, ["refresh = true", "mode = soft"]),
        (OptimizerConfig, {"decay": "sawtooth"}, ["decay = sawtooth", "period = 0"]),
        (OptimizerConfig, {"period": 5}, ["decay = linear", "period = 5"]),
        (OptimizerConfig, {"offset": 5}, ["offset = 5", "not linear"]),
    ],
)
def test_a_switch_without_its_other_half_is_refused(section, values, words):
    with pytest.raises(ValueError) as error:
        section(**values)
    assert all(word in str(error.value) for word in words)
