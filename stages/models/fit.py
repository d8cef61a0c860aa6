"""Whether a folder holds a causal language model that can be loaded: what does not is refused before it is used."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors import safe_open
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stages.errors import SepoError, borrowed, shortened
from stages.models.adapters import is_adapter
from stages.store.files import read_object
from stages.store.shape import is_file_name

WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin")
REMEDY: Final = "give a folder written by save_pretrained, or a hub name such as HuggingFaceTB/SmolLM2-135M-Instruct"
_MOST_LAYERS: Final = 4096
"""of a model whose weights are not here to tell"""
_DEPTHS: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_HARMLESS: Final = re.compile(
    r"rotary_emb\.inv_freq$|\battn\.(masked_)?bias$|\battention\.(masked_)?bias$|(^|\.)position_ids$|(^|\.)mtp"
)
"""what old checkpoints hold beside their weights (tables and masks that are computed), and heads for further tokens"""
_HARMLESS_IF_CUT: Final = re.compile(_HARMLESS.pattern + r"|\.\d+\.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files, or, where there are none, the pickled ones (which are loaded with weights_only)."""
    for pattern in ("adapter_model.safetensors",) if is_adapter(folder) else WEIGHTS:
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []


def dtype_of_files(folder: Path) -> torch.dtype:
    """What all weights of a folder are saved in, so that files stay mapped; float32, which holds all, where it differs.

    A configuration may name another type, to which they would be rounded.
    """
    found: set[str] = set()
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with borrowed(f"cannot read {path}", REMEDY), safe_open(path, "pt") as weights:
                found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    halves = {"BF16": torch.bfloat16, "F16": torch.float16}
    return halves.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def refuse_leading_out(index: Path) -> None:
    """Weights lie in the folder that is hashed: an index that leads out of it would load what nobody looked at."""
    named = read_object(index, REMEDY).get("weight_map")
    wrong = [file for file in named.values() if not is_file_name(file)] if isinstance(named, dict) else [named]
    if wrong:
        raise SepoError(f"{index}: {shortened(repr(wrong[0]))} is no file in its folder", hint=REMEDY)


def refuse_unfit(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse models that are no causal language models, as their configuration tells."""
    if config.get("is_encoder_decoder"):
        raise SepoError(f"{folder} is an encoder-decoder model; sepo needs a causal language model", hint=REMEDY)
    for sense in ("vision", "audio"):
        if config.get(f"{sense}_config"):
            problem = f"{folder} is a model of {sense} and text; sepo needs a causal language model of text alone"
            raise SepoError(problem, hint="save its language model apart, or give a text model of its family")
    _refuse_other_kind(folder, config)


def _refuse_other_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what was saved as another class of transformers: its weights may fill a language model all the same."""
    names, own_code = config.get("architectures"), config.get("auto_map")
    if not isinstance(names, list) or not names or (isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code):
        return
    known = [name for name in names if isinstance(name, str) and hasattr(transformers, name)]
    if known and not set(known) & {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}:
        raise SepoError(f"{folder} is a {known[0]}; sepo needs a causal language model", hint=REMEDY)


def refuse_impossible_depth(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration with more layers than there are weights, before as many are built."""
    files, most = weight_files(folder), 0
    if not files:
        most = _MOST_LAYERS
    elif files[0].suffix == ".safetensors":
        for path in files:
            with borrowed(f"cannot load {folder} as a causal language model", REMEDY), safe_open(path, "pt") as weights:
                most += len(weights.keys())
    else:
        most = sum(path.stat().st_size for path in files)
    for name in _DEPTHS:
        layers = config.get(name)
        if isinstance(layers, int) and layers > most:
            raise SepoError(f"{folder}/config.json has {name} {layers:,}, where {most:,} are possible", hint=REMEDY)


def refuse_other_weights(folder: Path, kind: str, info: Mapping[str, Any], *, cut: bool) -> None:
    """Refuse weights that are not the model's, by the report of `from_pretrained`; a cut model leaves layers out."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise SepoError(f"{folder} lacks {len(missing)} of its weights, such as {missing[0]}", hint=REMEDY)
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        sizes = f"{name} is {list(found)}, and config.json makes it {list(wanted)}"
        raise SepoError(f"{len(mismatched)} weights of {folder} are of another size: {sizes}", hint=REMEDY)
    harmless = _HARMLESS_IF_CUT if cut else _HARMLESS
    surplus = sorted(name for name in info["unexpected_keys"] if not harmless.search(name))
    if surplus:
        raise SepoError(
            f"{folder} holds {len(surplus)} weights that a {kind} does not take, such as {surplus[0]}",
            hint="give a folder saved as a causal language model, with the config.json that it was saved with",
        )
