"""Write `fixtures/bert_golden_*`: weights, inputs and results of transformers' torch BERT in float32.

    python tests/make_bert_golden.py          # needs the `parity` extra

`test_parity.py` compares jaxprune with these files, and with live runs of `reference` on other seeds.
"""

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    "gelu": {
        "config": {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 72,
            "max_position_embeddings": 24,
            "type_vocab_size": 2,
            "hidden_act": "gelu",
        },
        "batch": 4,
        "length": 16,
        "predictions": 3,
        "padded": False,
    },
    "gelu_new": {
        "config": {
            "vocab_size": 61,
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "max_position_embeddings": 20,
            "type_vocab_size": 2,
            "hidden_act": "gelu_new",
        },
        "batch": 3,
        "length": 20,
        "predictions": 4,
        "padded": False,
    },
    "padded": {
        "config": {
            "vocab_size": 83,
            "hidden_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "intermediate_size": 56,
            "max_position_embeddings": 32,
            "type_vocab_size": 3,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "pad_token_id": 5,
        },
        "batch": 5,
        "length": 18,
        "predictions": 4,
        "padded": True,
    },
}


def make_batch(case: dict, seed: int) -> dict[str, np.ndarray]:
    """A pre-training batch; with `padded`, rows end in [PAD] (mask 0) and have fewer real predictions."""
    rng = np.random.default_rng(seed)
    cfg, B, L, P = case["config"], case["batch"], case["length"], case["predictions"]
    pad = cfg.get("pad_token_id", 0)
    ids = rng.integers(pad + 1, cfg["vocab_size"], (B, L))
    lengths = rng.integers(L // 2, L, B) if case["padded"] else np.full(B, L)
    mask = np.arange(L)[None] < lengths[:, None]
    weights = np.arange(P)[None] < (rng.integers(1, P + 1, B) if case["padded"] else np.full(B, P))[:, None]
    positions = np.stack([np.sort(rng.choice(n, P, replace=False)) for n in lengths])
    return {
        "input_ids": np.where(mask, ids, pad).astype(np.int32),
        "token_type_ids": np.where(mask, rng.integers(0, cfg["type_vocab_size"], (B, L)), 0).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "masked_positions": np.where(weights, positions, 0).astype(np.int32),
        "masked_ids": np.where(weights, rng.integers(0, cfg["vocab_size"], (B, P)), 0).astype(np.int32),
        "masked_weights": weights.astype(np.float32),
        "next_sentence_label": rng.integers(0, 2, B).astype(np.int32),
    }


def randomize(model, seed: int) -> None:
    """Give every parameter random values, biases and LayerNorm included, large enough for every path to matter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = name.lower().replace("_", "").endswith("layernorm.weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.15 * noise)


def as_torch(batch: dict[str, np.ndarray]) -> dict:
    """The model inputs of a batch as torch tensors."""
    import torch

    names = ("input_ids", "token_type_ids", "attention_mask")
    return {name: torch.from_numpy(batch[name]).long() for name in names}


def reference(case: dict, seed: int) -> tuple[dict, dict, dict]:
    """Tensors under transformers' names, the batch, and torch's hidden states, logits, losses and gradients."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(seed)
    model = BertForPreTraining(BertConfig(**case["config"], attn_implementation="eager")).eval()
    randomize(model, seed)
    batch = make_batch(case, seed)
    out = model(**as_torch(batch), output_hidden_states=True)
    rows = torch.arange(case["batch"])[:, None]
    logits = out.prediction_logits[rows, torch.from_numpy(batch["masked_positions"]).long()]
    real = torch.from_numpy(batch["masked_weights"]) > 0
    cross_entropy = torch.nn.functional.cross_entropy
    mlm = cross_entropy(logits[real], torch.from_numpy(batch["masked_ids"]).long()[real])
    nsp = cross_entropy(out.seq_relationship_logits, torch.from_numpy(batch["next_sentence_label"]).long())
    (mlm + nsp).backward()
    parameters = dict(model.named_parameters())
    tensors = {name: parameter.detach().numpy() for name, parameter in parameters.items()}
    expected = {
        "mlm_logits": logits,
        "all_mlm_logits": out.prediction_logits,
        "nsp_logits": out.seq_relationship_logits,
        "mlm_loss": mlm,
        "nsp_loss": nsp,
        **{f"hidden_{i:02d}": state for i, state in enumerate(out.hidden_states)},
    }
    expected = {name: value.detach().numpy() for name, value in expected.items()}
    return tensors, batch, expected | {f"grad:{name}": p.grad.numpy() for name, p in parameters.items()}


def main() -> None:
    """Write one safetensors file of weights and one npz of inputs (`in:`) and results (`out:`) per case."""
    from safetensors.numpy import save_file

    for number, (name, case) in enumerate(CASES.items()):
        tensors, batch, expected = reference(case, seed=number)
        save_file(tensors, FIXTURES / f"bert_golden_{name}.safetensors")
        arrays = {f"in:{k}": v for k, v in batch.items()} | {f"out:{k}": v for k, v in expected.items()}
        np.savez_compressed(FIXTURES / f"bert_golden_{name}.npz", **arrays)


if __name__ == "__main__":
    main()
