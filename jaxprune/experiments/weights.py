"""Where a run's weights and masks come from: a workdir, a Hugging Face directory, or a hub name."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.commands import FinetuneConfig, PretrainConfig
from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.load import parse_yaml, read_yaml, validate
from jaxprune.config.sections import ModelConfig, PruneConfig
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError
from jaxprune.experiments.pruning_plan import prunable_by, unpruned
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_config, read_folder
from jaxprune.models.hub import find_folder
from jaxprune.models.model import Head
from jaxprune.models.other_files import CONFIG
from jaxprune.models.paths import layer_name
from jaxprune.models.tensors import leaf_shapes, tensor_name
from jaxprune.models.weights import MASKS, read_masks
from jaxprune.pruning.masks import pruned_share
from jaxprune.pruning.names import matched
from jaxprune.training.manifest import check_whole, read_manifest

log = logging.getLogger("jaxprune")

SHAPE_FIELDS = (
    *("architecture", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("layer_heads", "layer_neurons", "intermediate_size", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "pad_token_id"),
)
FUNCTION_FIELDS = ("hidden_act", "sublayer_relu", "classifier_dropout")
"""What the same weights may be asked to compute instead; unset (at its default), the checkpoint decides."""


class Weights(NamedTuple):
    """What a source holds, and nothing else: params on the host, and masks (None where the source has none)."""

    model: ModelConfig
    params: Any
    masks: Any
    source: str
    others: tuple[str, ...] = ()
    """Tensors of other heads, which params do not hold."""


def absolute(path: str, before: str = "") -> str:
    """`path` as it holds from any directory; a hub name, or what is not there (nor was, as `before`), as it is."""
    full = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 (resolve would follow links)
    return full if path and (Path(full).exists() or full == before) else path


def run_of(source: str | Path) -> tuple[Path, int | None]:
    """The workdir that a source names, and the step where it is one checkpoint of it (`RUN/checkpoints/8`)."""
    path = Path(source).expanduser()
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def stored_config(workdir: str | Path | None) -> Any:
    """The config that a pre-training or fine-tuning workdir was made with; None where `workdir` is none.

    It is what the workdir's manifest holds, where that has one: config.yaml may have been edited, or be gone.
    """
    if not workdir:
        return None
    folder = run_of(workdir)[0]
    path, text = folder / "config.yaml", read_manifest(folder).state.get("config.yaml")
    if text is None and not path.is_file():
        return None
    content = read_yaml(path) if text is None else parse_yaml(text, path)
    kinds = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    kind = kinds.get(content.get("command", ""))
    return validate(kind, content, str(path)) if kind else None


def source_model(source: str, revision: str) -> ModelConfig:
    """The shape of the weights at a source, without reading them."""
    cfg = stored_config(source)
    return cfg.model if cfg else read_config(source, revision=revision or None)


def shallower(model: ModelConfig, layers: Sequence[int], source: str) -> ModelConfig:
    """The shape of a model with these of its layers alone; none named stands for all. UserError past its end."""
    if layers and max(layers) >= model.num_hidden_layers:
        last = model.num_hidden_layers - 1
        raise UserError(f"layers = {[*layers]}: {source} has the layers 0 to {last}; name some of those")
    return model.with_layers(layers) if layers else model


def with_layers(weights: Weights, layers: Sequence[int]) -> Weights:
    """`weights` with these of their layers alone, in this order and numbered anew; none named stands for all."""

    def chosen(tree: Any) -> Any:
        encoder = {layer_name(new): tree["encoder"][layer_name(old)] for new, old in enumerate(layers)}
        return tree | {"encoder": encoder}

    if not layers:
        return weights
    masks = None if weights.masks is None else chosen(weights.masks)
    model = shallower(weights.model, layers, weights.source)
    return weights._replace(model=model, params=chosen(weights.params), masks=masks)


def with_masks_of(weights: Weights, cfg: PretrainConfig | FinetuneConfig) -> Weights:
    """`weights` with the masks of `cfg.masks_from`, where it names any; UserError where those are of another shape."""
    if not cfg.masks_from:
        return weights
    held: dict[str, Any] = flatten_dict(weights.params, sep="/")
    optional = re.compile("|".join(architecture_named(weights.model.architecture).optional))
    joined: dict[str, Any] = dict.fromkeys(held)
    for source in cfg.masks_from:
        masks = read_weights(source).masks
        if masks is None:
            raise UserError(f"masks_from = {source}: has no masks; name a run, or a directory with {MASKS}")
        theirs: dict[str, Any] = flatten_dict(masks, sep="/")
        for path, mask in theirs.items():
            if mask is None or (path not in held and optional.fullmatch(path)):
                continue
            if path not in held or held[path].shape != mask.shape:
                misfit = f"a mask of {path} of shape {mask.shape}"
                raise UserError(f"masks_from = {source}: has {misfit}, which fits no weights of {weights.source}")
            joined.setdefault(path, None)
            joined[path] = [*(joined[path] or ()), np.asarray(mask)]
    join, sources = (np.logical_and, 1) if cfg.masks_kept_by == "all" else (np.logical_or, len(cfg.masks_from))
    # A source without a mask of a leaf keeps all of it.
    made = {path: join.reduce(each) if each and len(each) >= sources else None for path, each in joined.items()}
    return weights._replace(masks=unflatten_dict(made, sep="/"))


def masked_beyond(source: str, revision: str, model: ModelConfig, head: Head, structure: str) -> list[str]:
    """Regexes of the paths that a source has masks of, though `structure` does not count them as prunable.

    Heads and neurons count no other matrices: of these only masks that prune something.
    """
    cfg, record = stored_config(source), architecture_named(model.architecture)
    prunable = prunable_by(structure, model)
    ours = prunable is record.prunable

    def paths(head: Head) -> list[str]:
        return [*leaf_shapes(record, model, head=head, num_labels=2 if head == "classification" else 0)]

    if isinstance(cfg, PretrainConfig):
        include, exclude = cfg.prune.include, cfg.prune.exclude
        if {*include} <= {*prunable} or not (ours or cfg.prune.prunes or cfg.init_from):
            return []
        masked = _matching(include, paths("pretraining")) - _matching(exclude, paths("pretraining"))
    else:
        names = read_masks(model_folder(source), revision or None)
        if not names:
            return []
        names = {name for name, mask in names.items() if ours or not mask.all()}
        masked = {path for path in paths(head) if tensor_name(record, path) in names}
    counted = _matching(prunable, paths(head))
    return [re.escape(path) for path in paths(head) if path in masked and path not in counted]


def masked_at_start(cfg: PretrainConfig | FinetuneConfig, model: ModelConfig, head: Head) -> list[str]:
    """`masked_beyond` of where a run's first masks come from: `masks_from`, or `init_from`."""
    sources = [(source, "") for source in cfg.masks_from] or [(cfg.init_from, cfg.init_revision)]
    found = (masked_beyond(*source, model, head, cfg.prune.structure) for source in sources)
    return [*dict.fromkeys(path for paths in found for path in paths)]


def _matching(regexes: Iterable[str], paths: Sequence[str]) -> set[str]:
    return {path for regex in regexes for path in matched(regex, paths, "include or exclude")}


def model_folder(source: str) -> str:
    """The Hugging Face directory that `kept_model` finds in a workdir; any other source as it is.

    UserError where a run has none, or a grid one for each task, or it is not as it was written.
    """
    cfg, place = stored_config(source), Path(source).expanduser()
    if cfg is None and (not (place / "config.yaml").is_file() or (place / CONFIG).is_file()):
        return source
    run, step = run_of(source)
    if step is not None:
        raise UserError(f"{source}: is one checkpoint, which is no Hugging Face directory; give {run}")
    if folder := kept_model(run):
        check_whole(run, str(folder.relative_to(run)), "run its command again, which puts it right, or put it back")
        return str(folder)
    several = next(filter(None, (sorted(place.glob(f"{below}/hf/{CONFIG}")) for below in ("best/*", "*", "*/*"))), ())
    if several:
        names = ", ".join(str(path.parent) for path in several[:6])
        raise UserError(f"{source}: holds several models; name one of {names}{', ...' if len(several) > 6 else ''}")
    if cfg is None:
        raise UserError(f"{source}: is no run with a model of its own; name the hf/ of one below it")
    if isinstance(cfg, FinetuneConfig) and not cfg.keep_weights:
        raise UserError(f"{source}: kept no weights; fine-tune with keep_weights: true")
    first = "delete it and " if isinstance(cfg, FinetuneConfig) and (run / "result.json").is_file() else ""
    raise UserError(f"{source}: has no hf/, which a finished run has; {first}run its command again")


def kept_model(workdir: str | Path) -> Path | None:
    """The Hugging Face directory that a run left: its `hf/`, of a grid of one task the best run's; None without."""
    folders = (run_of(workdir)[0] / name for name in ("hf", "best/hf"))
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def shaped(wanted: ModelConfig, source: ModelConfig, name: str) -> ModelConfig:
    """`wanted` with the shape of the weights in `source`.

    UserError when a shape field of `wanted` was set to another value than the weights have.
    """
    changes = {}
    for field in (*SHAPE_FIELDS, *FUNCTION_FIELDS):
        value, default, theirs = getattr(wanted, field), ModelConfig.model_fields[field].default, getattr(source, field)
        if field in SHAPE_FIELDS and field in wanted.model_fields_set and value != theirs:
            raise UserError(f"model.{field} = {value}, but {name} has {theirs}; remove model.{field}")
        changes[field] = theirs if field in SHAPE_FIELDS or value == default else value
    return wanted.model_copy(update=changes)


def check_vocabulary(vocabulary: Vocabulary, model: ModelConfig, name: str, trained: str) -> None:
    """UserError where the ids of `vocabulary`, whose place is `name`, are not those that the model knows.

    `trained`: where its weights come from; "" for a model from scratch, whose shape can still be changed.
    """
    size, pad, most = (
        vocabulary.size,
        vocabulary.special["pad"],
        architecture_named(model.architecture).max_tokens(model),
    )
    source = trained or "the model"
    if size > model.vocab_size:
        remedy = "use the tokenizer it was trained with" if trained else f"set model.vocab_size = {size}"
        raise UserError(f"{name}: its {size} pieces do not fit the {model.vocab_size} rows of {source}; {remedy}")
    if most < model.max_position_embeddings and pad != model.pad_token_id:  # positions are counted from behind it
        remedy = "use the tokenizer it was trained with" if trained else f"set model.pad_token_id = {pad}"
        raise UserError(f"{name}: its padding has id {pad}, that of {source} is {model.pad_token_id}; {remedy}")


def check_pairs(model: ModelConfig, where: str) -> None:
    """UserError where a model cannot tell two texts apart: the second of BERT's pairs has a segment type of its own."""
    if architecture_named(model.architecture).next_sentence and model.type_vocab_size < 2:
        raise UserError(f"{where}: has type_vocab_size = 1, so it takes no pairs of texts; use another model or task")


def folder_beside(source: str, revision: str = "") -> Path | None:
    """The Hugging Face directory whose other files belong to the weights in `source`, if there is one.

    That of a workdir is the one that it left, or while it has none that of what it started from. One that is gone is
    said.
    """
    cfg = stored_config(source)
    if cfg is not None:
        return kept_model(source) or folder_beside(cfg.init_from, cfg.init_revision)
    try:
        return find_folder(source, revision or None) if source else None
    except UserError as error:
        log.warning("%s; so its tokenizer's and other files are not copied", error)
        return None


def tokenizer_beside(source: str) -> str:
    """Where the tokenizer lies that the weights in `source` were trained with: a directory or hub name."""
    stored = stored_config(source)
    if stored is None:
        return str(encoder_part(Path(source)))
    if own := kept_model(source):
        return str(own)
    run = run_of(source)[0]
    return str((run if isinstance(stored, FinetuneConfig) else Path(stored.data.path).expanduser()) / "tokenizer")


def read_weights(source: str, revision: str = "", variant: str = "") -> Weights:
    """What `source` holds; `variant` as in `read_folder`.

    Of a pre-training workdir that is its newest checkpoint, or the one that is named (`RUN/checkpoints/8`), with dense
    values under soft masks; of a fine-tuning run the model that it kept.
    """
    cfg = stored_config(source)
    if isinstance(cfg, PretrainConfig):
        from jaxprune.training.checkpoint import Checkpoints, steps_in

        run, step = run_of(source)
        if step is not None or steps_in(run) or kept_model(run) is None:
            with Checkpoints(run.absolute(), read_only=True) as checkpoints:
                restored = checkpoints.restore(step=step)
            if restored is not None:
                params, masks = jax.device_get((restored[1]["params"], restored[1]["masks"]))
                return Weights(cfg.model, params, masks, source)
            raise UserError(f"init_from = {source}: has no checkpoint yet; let its run save one first")
        log.info("%s: its checkpoints are gone; its hf/ is read", source)
    read = read_folder(model_folder(source), head=None, revision=revision or None, variant=variant)
    return Weights(read.model, read.params, read.masks, source, read.others)


def completed(weights: Weights, init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """Whole params as `init` has them: what the source holds, and heads and pooler that it lacks drawn from `key`."""
    wanted = [*flatten_dict(jax.eval_shape(init, key), sep="/")]
    held: dict[str, Any] = flatten_dict(weights.params, sep="/")
    if drawn := lacking(weights, init):
        fresh = jax.jit(lambda k: {path: flatten_dict(init(k), sep="/")[path] for path in drawn})(key)
        held |= jax.device_get(fresh)
    return unflatten_dict({path: held[path] for path in wanted}, sep="/")


def lacking(weights: Weights, init: Callable[[jax.Array], Any]) -> list[str]:
    """The paths of heads and pooler that `init` has and the source lacks; UserError where it lacks others."""
    optional = architecture_named(weights.model.architecture).optional
    wanted: dict[str, Any] = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    held: dict[str, Any] = flatten_dict(weights.params, sep="/")
    fits = {path for path, leaf in wanted.items() if path in held and held[path].shape == leaf.shape}
    drawn = [path for path in wanted if path not in fits]
    for path in drawn:
        if not any(re.match(regex, path) for regex in optional):
            problem = f"has shape {held[path].shape}, not {wanted[path].shape}" if path in held else "is missing"
            raise UserError(f"{weights.source}: {path} {problem}; give weights of the model that the config names")
    return drawn


def left_behind(weights: Weights, init: Callable[[jax.Array], Any]) -> list[str]:
    """The modules of heads that the source has and `init` has not, but for those that pre-training trains."""
    record = architecture_named(weights.model.architecture)
    known = {*flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")}
    known |= leaf_shapes(record, weights.model, head="pretraining").keys()
    others = [path.rpartition("/")[0] for path in flatten_dict(weights.params, sep="/") if path not in known]
    return [*dict.fromkeys([*others, *(name.rpartition(".")[0] for name in weights.others)])]


def say_pruned(weights: Weights, prune: PruneConfig) -> None:
    """Say it where more of the source is pruned already than `prune` asks for."""
    masks = [np.asarray(mask) for mask in jax.tree.leaves(weights.masks)]
    if not masks or not prune.prunes or prune.amounts:
        return
    pruned = pruned_share(sum(map(np.count_nonzero, masks)), sum(mask.size for mask in masks))
    if pruned > prune.sparsity:
        already = f"{100 * pruned:.1f} % of its masked weights are pruned already"
        remedy = f"sparsity = {prune.sparsity:g} takes no more (masks = none lifts them)"
        log.info("%s: %s; %s", weights.source, already, remedy)


def there(prune: PruneConfig, weights: Weights) -> PruneConfig:
    """`prune`, whose include is the default, without its regexes that match nothing the source holds, which is said."""
    paths = flatten_dict(weights.params, sep="/")
    missing = [regex for regex in prune.include if not matched(regex, paths, "include")]
    if not missing or len(missing) == len(prune.include):
        return prune
    log.info("%s has no %s: left out", weights.source, ", ".join(missing))
    return prune.model_copy(update={"include": tuple(regex for regex in prune.include if regex not in missing)})


def start_masks(params: Any, weights: Weights, prune: PruneConfig, *, lift: bool = False) -> Any:
    """Masks to start with: what is prunable by `prune.include` and `exclude`; what is pruned by the source's masks.

    Where the source has no masks, exact zeros among the prunable weights count as pruned, which is said. `lift` leaves
    nothing pruned. UserError when nothing is prunable.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    flat: dict[str, Any] = flatten_dict(unpruned(prune, shapes), sep="/")
    held: dict[str, Any] = flatten_dict(weights.params, sep="/")
    known: dict[str, Any] = flatten_dict(weights.masks, sep="/") if weights.masks is not None else {}
    for path, mask in flat.items():
        if mask is None:
            continue
        flat[path] = np.ones(mask.shape, bool)
        if lift or path not in held:
            continue
        if weights.masks is None:
            flat[path] = np.asarray(held[path]) != 0
        elif known.get(path) is not None:
            flat[path] = np.asarray(known[path])
    masks = unflatten_dict(flat, sep="/")
    made = [mask for mask in flat.values() if mask is not None]
    size = sum(mask.size for mask in made)
    zeros = size - sum(map(np.count_nonzero, made))
    if weights.masks is None and zeros:
        counts = f"{zeros:,} of {size:,} prunable weights are exactly 0"
        log.info("%s brings no masks: %s and count as pruned (masks: none lifts)", weights.source, counts)
    return masks
