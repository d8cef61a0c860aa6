"""A model that is loaded to be read, not trained: how exactly it is computed, and on which devices its layers lie.

`--device-map auto` is accelerate's dispatch: each layer is computed on the GPU that holds it, and what no GPU has room
for waits in the host's memory and is fetched for every batch. Ids go in, and hidden states come out, where the
embedding is computed (`stages.devices.placement`). `--device-map tensor-parallel`: see `stages.models.tensor_parallel`.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import torch
from accelerate import Accelerator, dispatch_model, infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import get_balanced_memory

from stages.compat import skipped_by_devices, unsplit_modules
from stages.devices.extras import refuse_without
from stages.devices.memory import enough_memory, move_model
from stages.devices.placement import input_device
from stages.devices.precision import refuse_useless, weights_of
from stages.errors import SepoError
from stages.models.adapters import Adapted, is_adapter, put_on
from stages.models.folders import base_folder, described_in, load_model, load_without_weights
from stages.models.quantization import held_in, refuse_quantized
from stages.models.tensor_parallel import TENSOR_PARALLEL, bytes_here, load_together, refuse_undivided
from stages.reporting import Reporter
from stages.types import CausalLM

_WORDS: Final = {"cpu": "in the host's memory", "disk": "on disk"}


class LoadingOptions(Protocol):
    """What a command that reads models has among its options."""

    @property
    def precision(self) -> str: ...
    @property
    def quantize(self) -> str | None: ...
    @property
    def device_map(self) -> str | None: ...
    @property
    def trust_remote_code(self) -> bool: ...


class Loading(NamedTuple):
    """How models are loaded to be read."""

    device: torch.device
    """of the whole model, where no map divides it"""
    reporter: Reporter
    """hears where a divided model's weights lie"""
    precision: str = "float32"
    quantize: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False

    def load(self, folder: Path) -> CausalLM:
        """The model of a folder; an adapter is merged, but for one on few bits, which would be rounded with them."""
        if self.device_map == TENSOR_PARALLEL:
            return self._load_part(folder)
        if self.quantize and is_adapter(folder):
            return self.load_adapted(base_folder(folder), folder).model
        if self.device_map is None:
            return move_model(self._read(folder), self.device)
        if is_adapter(folder):
            return self._divide(self._read_here(folder, ordinary=True), folder)
        with _room_for(folder):
            return self._joined(self._read(folder), folder)

    def load_adapted(self, base: Path, adapter: Path) -> Adapted:
        """A base with an adapter in it, which can be switched off if it leaves the base as it is."""
        if self.device_map is None:
            return put_on(self.load(base), adapter)
        # Before it is divided: peft takes the hooks out by which accelerate does that.
        adapted = put_on(self._read_here(base), adapter)
        return adapted._replace(model=self._divide(adapted.model, base))

    def _load_part(self, folder: Path) -> CausalLM:
        """What this process holds of a model, of which the others hold the rest."""
        dtype = weights_of(self.precision)
        with enough_memory(f"loading a part of {folder}", lambda: "use --precision bfloat16, or more processes"):
            model = load_together(folder, trust_remote_code=self.trust_remote_code, dtype=dtype)
        self.reporter.say(f"{folder}: {bytes_here(model) / 1e9:,.2f} GB in each process")
        return model

    def _read(self, folder: Path) -> CausalLM:
        """Each weight to where it belongs."""
        held = {"device_map": self.device_map} if self.device_map else None
        if self.quantize:
            held = held_in(self.quantize, self.device_map or {"": self.device}, weights_of(self.precision))
        return self._read_here(folder, held=held)

    def _read_here(self, folder: Path, **how: Any) -> CausalLM:
        """Into the host's memory, unless `how` says otherwise."""
        dtype = weights_of(self.precision)
        return load_model(folder, trust_remote_code=self.trust_remote_code, dtype=dtype, **how)

    def _divide(self, model: CausalLM, folder: Path) -> CausalLM:
        """A model in the host's memory, spread as `from_pretrained` would have spread it."""
        layers = sorted(unsplit_modules(model))
        with _room_for(folder):
            memory = get_balanced_memory(model, no_split_module_classes=layers)
            places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=layers)
            if "disk" in places.values():
                raise SepoError(
                    f"{folder} with its adapter does not fit into the memory of the devices and the host",
                    hint="merge the adapter into its base (peft's merge_and_unload), and give the folder of that model",
                )
            return self._joined(dispatch_model(model, places, skip_keys=skipped_by_devices(model)), folder)

    def _joined(self, model: CausalLM, folder: Path) -> CausalLM:
        """A divided model that can be used without its head too: one device is given ids and gives hidden states."""
        places = _places(model)
        if len(places) > 1 or "disk" in places:
            hook = AlignDevicesHook(input_device(model), io_same_device=True, skip_keys=skipped_by_devices(model))
            add_hook_to_module(model.base_model, hook, append=True)
            held = (f"{size / 1e9:,.2f} GB {_WORDS.get(place, f'on {place}')}" for place, size in places.items())
            self.reporter.say(f"{folder}: {', '.join(held)}")
        return model


def loading_of(options: LoadingOptions, device: torch.device, reporter: Reporter) -> Loading:
    """What a command's options say of it."""
    how = (options.precision, options.quantize, options.device_map, options.trust_remote_code)
    return Loading(device, reporter, *how)


def refuse_unloadable(options: LoadingOptions, accelerator: Accelerator, folders: Collection[Path]) -> None:
    """Stop, before a model's weights are read, where it could not be loaded as the options say."""
    refuse_useless(options.precision, accelerator.device)
    if options.quantize:
        refuse_without("bitsandbytes", f"--quantize {options.quantize}", "qlora")
        for folder in folders:
            _refuse_rounding(folder, options)
    if options.device_map is None:
        return
    if options.device_map == TENSOR_PARALLEL:
        for folder in folders:
            trust = options.trust_remote_code
            refuse_undivided(folder, accelerator.num_processes, options.quantize, trust_remote_code=trust)
        return
    if accelerator.num_processes > 1:
        raise SepoError(
            f"device_map gives one process all devices, but {accelerator.num_processes} were started",
            hint="start one process; or leave it out, and each process has the whole model on a device of its own",
        )
    for folder in folders:
        model = load_without_weights(described_in(folder), trust_remote_code=options.trust_remote_code)
        if not unsplit_modules(model):
            raise SepoError(
                f"{folder} cannot be divided by device_map: {type(model).__name__} does not say what its layers are",
                hint="leave out --device-map; its class in transformers lacks _no_split_modules",
            )


def _refuse_rounding(folder: Path, options: LoadingOptions) -> None:
    refuse_quantized(folder, str(options.quantize))
    if options.device_map and is_adapter(folder):
        raise SepoError(
            f"{folder} is an adapter, which cannot be put on a model that is quantized and divided",
            hint="leave out --quantize or --device-map, or give the folder of a merged model",
        )


def _room_for(folder: Path) -> Any:
    return enough_memory(f"loading {folder} by a device map", lambda: "use --precision bfloat16, or more devices")


def _places(model: Any) -> Counter[str]:
    """Bytes of a divided model's weights by where they lie."""
    device_map = getattr(model, "hf_device_map", None) or {"": "device"}
    found: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        parts = name.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
        place = next(device_map[each] for each in prefixes if each in device_map)
        found[f"GPU {place}" if isinstance(place, int) else str(place)] += weight.nbytes
    return found
