"""One-shot pruning by other libraries, scored as `one_shot.py` scores ours: the same model, texts, matrices, amounts.

    python benchmarks/one_shot_peers.py --model MINILM --text TEXT --glue GLUE --out results/one_shot/peers.csv

Runs those that are installed: torch (`torch.nn.utils.prune`, magnitude in each matrix), torchao (its Wanda, in each
matrix), llmcompressor (its SparseGPT, and its Wanda in each row). Each prunes the encoder of `transformers.AutoModel`,
which is saved and then scored as ours are. Rows are added as they come; what the table has is not run again.
"""

import argparse
import importlib.metadata
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

sys.path.insert(0, str(Path(__file__).parent))
from one_shot import score

LENGTH = 128  # tokens of a text at most, as ours


Texts = list[dict[str, Any]]


def matrices(model: Any) -> dict[str, Any]:
    """The encoder's linear layers."""
    import torch

    return {
        name: part
        for name, part in model.named_modules()
        if name.startswith("encoder.") and isinstance(part, torch.nn.Linear)
    }


def torch_magnitude(model: Any, texts: Texts, sparsity: float) -> None:
    from torch.nn.utils import prune

    for part in matrices(model).values():
        prune.l1_unstructured(part, "weight", sparsity)
        prune.remove(part, "weight")


def torchao_wanda(model: Any, texts: Texts, sparsity: float) -> None:
    import torch
    from torchao.sparsity import WandaSparsifier

    sparsifier = WandaSparsifier(sparsity_level=sparsity)
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in matrices(model)])
    with torch.no_grad():
        for text in texts:
            model(**text)
    sparsifier.step()
    sparsifier.squash_mask()


def llmcompressor(modifier: str) -> Callable[[Any, Texts, float], None]:
    def pruned(model: Any, texts: Texts, sparsity: float) -> None:
        import torch
        from llmcompressor import oneshot
        from llmcompressor.modifiers import pruning

        recipe = getattr(pruning, modifier)(sparsity=sparsity, mask_structure="0:0", targets=[*matrices(model)])
        oneshot(model=model, dataset=torch.utils.data.DataLoader(texts, batch_size=None), recipe=recipe)

    return pruned


PEERS = {
    "torch, magnitude": ("torch", torch_magnitude),
    "torchao, Wanda": ("torchao", torchao_wanda),
    "llmcompressor, Wanda": ("llmcompressor", llmcompressor("WandaPruningModifier")),
    "llmcompressor, SparseGPT": ("llmcompressor", llmcompressor("SparseGPTModifier")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "text", "glue", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.7, 0.8])
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--texts", type=int, default=128)
    args = parser.parse_args()
    lines = [line for line in args.text.read_text().splitlines() if line.strip()][: args.texts]
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts = [dict(tokenizer(line, truncation=True, max_length=LENGTH, return_tensors="pt")) for line in lines]
    known = pandas.read_csv(args.out).to_dict("records") if args.out.exists() else []
    for sparsity, peer in itertools.product(args.sparsities, args.peers):
        if (peer, sparsity) in {(row["method"], row["sparsity"]) for row in known}:
            continue
        library, prune = PEERS[peer]
        model = transformers.AutoModel.from_pretrained(args.model, attn_implementation="eager").eval()
        begin = time.monotonic()
        prune(model, texts, sparsity)
        seconds = time.monotonic() - begin
        zeros = sum(int((part.weight == 0).sum()) for part in matrices(model).values())
        share = zeros / sum(part.weight.numel() for part in matrices(model).values())
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model"
            shutil.copytree(args.model, out)
            for path in (*out.glob("*.safetensors"), *out.glob("*.bin")):
                path.unlink()
            weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            transformers.AutoModel.from_pretrained(args.model).save_pretrained(out, state_dict=weights)
            row = {"method": peer, "version": importlib.metadata.version(library), "sparsity": sparsity}
            row |= {"zeros": round(share, 4), "spearman": round(score(out, args.glue, Path(folder)), 2)}
        known.append(row | {"texts": args.texts, "seconds": round(seconds, 1)})
        pandas.DataFrame(known).to_csv(args.out, index=False)
        print(known[-1], flush=True)


if __name__ == "__main__":
    main()
