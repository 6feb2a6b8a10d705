"""The common folder, read without transformers: a BERT tokenizer.json that the settings beside it agree with.

transformers 5 does not run a BERT's tokenizer.json; it takes the pieces and builds the rest from tokenizer_config.json.
Where both say the same the file itself will do, 1.7 s of CPU sooner.
"""

from collections.abc import Mapping
from typing import Any

from jaxprune.config.special_tokens import SpecialTokens

_IDLE = {"tokenizer_class", "model_max_length", "max_len", "name_or_path", "special_tokens_map_file"}
_IDLE |= {"do_basic_tokenize", "never_split", "clean_up_tokenization_spaces", "backend", "is_local", "local_files_only"}
_IDLE |= {"padding_side", "truncation_side", "model_input_names", "do_lower_case", "strip_accents"}
_IDLE |= {"tokenize_chinese_chars"}
"""Settings that change no id, or are compared by themselves."""
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def is_plain(whole: Mapping[str, Any], settings: Mapping[str, Any], special: SpecialTokens) -> bool:
    """Whether BertTokenizer makes of these files what `whole`, a tokenizer.json, holds, with `special` added alone.

    `settings`: what tokenizer_config.json and special_tokens_map.json state together.
    """
    model = whole.get("model") or {}
    ids = model.get("vocab")
    if not isinstance(ids, dict) or any(token not in ids for token in special):
        return False
    added = {str(ids[token]): {"content": token, **_FLAGS} for token in special}
    roles = {f"{role}_token": token for role, token in special._asdict().items()}
    allowed = roles | {"added_tokens_decoder": added, "extra_special_tokens": {}, "additional_special_tokens": []}
    expected = {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": special.unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
        "added_tokens": [{"id": int(number), **token} for number, token in added.items()],
    }
    found = {key: whole.get(key) for key in expected}
    found["added_tokens"] = sorted(found["added_tokens"] or (), key=lambda token: token["id"])
    expected["added_tokens"].sort(key=lambda token: token["id"])
    return (
        found == expected
        and len(set(ids.values())) == len(ids)
        and roles.items() <= {key: settings[key] for key in roles if isinstance(settings.get(key), str)}.items()
        and all(key in _IDLE or (key in allowed and allowed[key] == value) for key, value in settings.items())
    )
