"""The original single files: `sd_xl_base_1.0.safetensors`, `sd_xl_refiner_1.0.safetensors` and their descendants.

They hold the tensors of every model, or of one, but no configuration and no tokenizer: the configuration is recognised
by the tensors' shapes or read from a diffusers folder, and the tokenizers' vocabulary comes from elsewhere.
"""

import dataclasses
import re
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from distrijax.checkpoint import known, ldm, recognise
from distrijax.checkpoint.component import Component
from distrijax.checkpoint.files import PICKLES, read_json
from distrijax.checkpoint.folder import CLASSES, Folder
from distrijax.checkpoint.hub import CONFIG_PATTERNS, TOKENIZER_PATTERNS, locate
from distrijax.checkpoint.tensors import Tensor, log_harmless, read_safetensors
from distrijax.checkpoint.tokenizers import Files, sdxl_tokenizers
from distrijax.config.entry import Json
from distrijax.errors import DistrijaxError

VOCABULARY = "openai/clip-vit-large-patch14"


class SingleFile:
    """A `.safetensors` file with a whole model or one component, under diffusers' or the original names.

    Args:
        path: the file.
        config: a pipeline's or a component's folder or hub id with the file's configurations; by default the
            component's config.json that lies beside the file, or SDXL's.
    """

    rejects: ClassVar = {"variant": "is a single file and has no variant {!r}; give none"}

    def __init__(self, path: Path, config: str | Path | None = None):
        if path.suffix != ".safetensors":
            pickled = "; it is a pickle, which can run code and is never read" if path.suffix in PICKLES else ""
            raise DistrijaxError(
                f"{path}: is not a .safetensors file{pickled}; a source is such a file, a folder or a hub id"
            )
        self.path = path
        state = _whole(path, read_safetensors(path))
        if other := recognise.other_model(state):
            raise DistrijaxError(f"{path}: is not an SDXL checkpoint but {other}")
        self._config = None if config is None else Folder(locate(config, CONFIG_PATTERNS), part=True)
        harmless = {name for name in state if recognise.HARMLESS.fullmatch(name)}
        log_harmless(str(path), harmless)
        self._trained: dict[str, object] = {}
        for name in recognise.TRAINED.keys() & state:
            self._trained |= recognise.TRAINED[name]
        # Errors name tensors as diffusers does, so the original name is added to the file's.
        self._state = {
            name: dataclasses.replace(tensor, file=f"{path} ({name})")
            for name, tensor in state.items()
            if name not in {*harmless, *recognise.TRAINED}
        }
        self._prefixes = recognise.prefixes(self._state)

    @cached_property
    def index(self) -> Json:
        """The model_index.json of the file's model."""
        prefixes = tuple(self._prefixes.values())
        if not prefixes or "" in prefixes:
            raise DistrijaxError(
                f"{self.path}: {recognise.missing('vae' if 'unet' in self._prefixes else 'unet', self._state)}"
            )
        if strangers := [name for name in self._state if not name.startswith(prefixes)]:
            more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
            raise DistrijaxError(
                f"{self.path}: holds tensors that are not part of SDXL: {', '.join(strangers[:5])}{more}"
            )
        form, _ = self._form
        return self._config.index if self._config else known.packaged(f"{form}_model_index")

    def described(self, name: str) -> Component:
        """Return a component without its tensors."""
        beside = self.path.parent / "config.json"
        if self._config:
            return self._config.described(name)
        if beside.is_file() and _describes(values := read_json(beside), name):
            return Component.from_json(name, values, str(beside))
        if name == "vae" and any(re.fullmatch(recognise.TINY_VAE, tensor) for tensor in self._part(name)):
            return Component.from_json(name, {"_class_name": "AutoencoderTiny"}, str(self.path))
        if name != "unet":
            kind = known.packaged("base_model_index")[name][1]
            return Component.from_json(name, known.packaged(name), str(self.path), kind)
        form, changes = self._form
        return Component.from_json(name, known.packaged(f"{form}_unet") | changes, str(self.path))

    def component(self, name: str) -> Component:
        """Return a component, whose tensors are read later."""
        state, component = self._part(name), self.described(name)
        opened = any(key.startswith("transformer.resblocks.") for key in state)  # CLIP ViT-L has transformers' names
        pairs = ldm.open_clip(state.items()) if opened else state.items()
        return dataclasses.replace(component.with_torch_tensors(pairs, f"{self.path}, {name}"), trained=self._trained)

    def scheduler(self) -> Json:
        """Return the scheduler_config.json that belongs to the file."""
        return self._config.scheduler() if self._config else known.packaged("scheduler")

    def tokenizers(self, names: list[str]) -> dict[str, Files]:
        """Return the tokenizers of `config`, or OpenAI's vocabulary from the hub, which is SDXL's."""
        if self._config and all((self._config.path / name).is_dir() for name in names):
            return self._config.tokenizers(names)
        try:
            return sdxl_tokenizers(locate(VOCABULARY, TOKENIZER_PATTERNS), names)
        except DistrijaxError as error:
            raise DistrijaxError(
                f"{self.path}: a single file holds no tokenizer; give a folder with CLIP's vocab.json and merges.txt "
                f"as tokenizer ({error})"
            ) from error

    def _part(self, name: str) -> dict[str, Tensor]:
        """Return a component's tensors, by their names without the prefix."""
        if name not in self._prefixes:
            raise DistrijaxError(f"{self.path}: {recognise.missing(name, self._state)}")
        prefix = self._prefixes[name]
        return {key.removeprefix(prefix): self._state[key] for key in self._state if key.startswith(prefix)}

    @cached_property
    def _form(self) -> tuple[str | None, dict[str, int]]:
        """Which published U-Net the file's has the shapes of, and how its configuration differs."""
        unet = self._part("unet")
        if not any(name.startswith(("label_emb.", "add_embedding.")) for name in unet):
            raise DistrijaxError(
                f"{self.path}: is not an SDXL checkpoint: its U-Net has no label_emb.0.0.weight, like those of Stable "
                "Diffusion 1 and 2"
            )
        form, changes = recognise.published_form(unet)
        if form is None and self._config is None:
            raise DistrijaxError(
                f"{self.path}: is neither SDXL base nor refiner by its shapes; give a diffusers folder with its "
                "configuration as config, or put the U-Net's config.json beside it"
            )
        return form, changes


def _whole(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file; of an original TAESD file, which holds one half of the model, those of both."""
    if not state or not all(re.fullmatch(r"\d+\.(conv\.\d+\.)?(weight|bias)", name) for name in state):
        return state
    halves = (
        ["encoder", "decoder"] if "0.weight" in state else ["decoder", "encoder"]
    )  # its decoder begins with a clamp
    this, other = halves
    beside = path.with_name(path.name.replace(this, other))
    if beside == path or not beside.is_file():
        name = "" if beside == path else f" as {beside.name}"
        raise DistrijaxError(
            f"{path}: is the {this} of a TAESD model without its {other}; put that beside it{name}, with names that "
            f"differ only in {this!r} and {other!r}"
        )
    both = {this: state, other: read_safetensors(beside)}
    return {f"taesd_{half}.{name}": both[half][name] for half in sorted(both) for name in both[half]}


def _describes(json: Json, name: str) -> bool:
    classes = [json.get("_class_name"), *(json.get("architectures") or [])]
    return any(kind in CLASSES[name] for kind in classes)
