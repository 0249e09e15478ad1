"""The diffusers format: a folder with model_index.json and a folder for each component."""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from distrijax.checkpoint.component import COMPONENTS, Component
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, PICKLES, read_json
from distrijax.checkpoint.hub import STEMS, weight_names
from distrijax.checkpoint.tensors import Tensor, read_safetensors
from distrijax.checkpoint.tokenizers import Files, read_tokenizer
from distrijax.config import entry
from distrijax.config.entry import Json
from distrijax.config.text_encoder import WITH_PROJECTION
from distrijax.errors import DistrijaxError

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": tuple(WITH_PROJECTION),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_FLAGS = dict.fromkeys(("force_zeros_for_empty_prompt", "requires_aesthetics_score"), entry.flag)


class Folder:
    """A folder that diffusers' `save_pretrained` wrote: a pipeline's, or a single component's.

    Args:
        path: the folder.
        variant: suffix of the weights' file names, such as "fp16"; components that lack it are read without it.
        part: no component has to have the variant. Otherwise one must, or it is misspelt.
    """

    rejects: ClassVar = {"config": "has its own configuration; config is for single files"}

    def __init__(self, path: Path, variant: str | None = None, *, part: bool = False):
        self.path, self._variant = path, variant
        self._mixed = part or any(_has_weights(path / name, name, variant) for name in STEMS)

    @cached_property
    def index(self) -> Json:
        """Its model_index.json, checked."""
        where = self.path / MODEL_INDEX
        if not where.is_file():
            raise DistrijaxError(_not_a_pipeline(self.path))
        return checked_index(read_json(where), str(where))

    def described(self, name: str) -> Component:
        """Return a component without its tensors, from its config.json."""
        folder, kind = self._place(name), None
        if not folder.is_dir():
            raise DistrijaxError(f"{folder}: there is no such folder, but the checkpoint needs it for its {name}")
        if folder != self.path and (self.path / MODEL_INDEX).is_file():
            kind = self.index[name][1]
            if kind not in CLASSES[name]:
                allowed = ", ".join(CLASSES[name])
                raise DistrijaxError(f"{self.path / MODEL_INDEX}: {name} is a {kind}; supported: {allowed}")
        where = folder / "config.json"
        return Component.from_json(name, read_json(where), str(where), kind)

    def component(self, name: str) -> Component:
        """Return a component, whose tensors are read later."""
        described, folder = self.described(name), self._place(name)
        variant = None if self._mixed and not _has_weights(folder, name, self._variant) else self._variant
        state = read_weights(folder, name, variant)
        prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
        return described.with_torch_tensors(state.items(), str(folder), prefix)

    def scheduler(self) -> Json:
        """Return its scheduler_config.json, with the class that model_index.json names: diffusers builds that one."""
        values, named = read_json(self.path / "scheduler" / "scheduler_config.json"), self.index.get("scheduler")
        kind = named[1] if isinstance(named, list) and len(named) == 2 else None
        return values | ({"_class_name": kind} if kind else {})

    def tokenizers(self, names: Iterable[str]) -> dict[str, Files]:
        """Return the files of its tokenizers."""
        return {name: read_tokenizer(self.path / name) for name in names}

    def _place(self, name: str) -> Path:
        inside = self.path / name
        return inside if inside.is_dir() or (self.path / MODEL_INDEX).is_file() else self.path


def _has_weights(folder: Path, name: str, variant: str | None) -> bool:
    return any((folder / file).is_file() for file in weight_names(name, variant))


def read_weights(folder: Path, name: str, variant: str | None) -> dict[str, Tensor]:
    """Return a component's tensors by torch name, from one file or from the parts that an index names.

    Of a folder with both, diffusers reads the parts (U-Net and VAE), transformers the whole file (text encoders).
    """
    file, index = weight_names(name, variant)
    whole, split = (folder / file).is_file(), (folder / index).is_file()
    if whole and (not split or STEMS[name] == "model"):
        return read_safetensors(folder / file)
    if not split:
        raise DistrijaxError(_no_weights(folder, name, variant))

    names = read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
        raise DistrijaxError(f"{folder / index}: has no weight_map of tensor names and file names")
    parts = sorted(set(names.values()))
    if strange := [part for part in parts if Path(part).name != part or not part.endswith(".safetensors")]:
        raise DistrijaxError(f"{folder / index}: names {strange[0]!r}, which is not a safetensors file beside it")
    if absent := [part for part in parts if not (folder / part).is_file()]:
        raise DistrijaxError(f"{folder}: {len(absent)} of {len(parts)} parts are missing: {', '.join(absent)}")
    found = [(part, read_safetensors(folder / part)) for part in parts]
    places = {(key, part) for part, tensors in found for key in tensors}
    if wrong := sorted(places ^ set(names.items())):
        key, part = wrong[0]
        does = "holds" if (key, part) in places else "lacks"
        raise DistrijaxError(f"{folder / part}: {does} tensor {key!r}, but {index} places it in {names.get(key)}")
    return {key: tensor for _, tensors in found for key, tensor in tensors.items()}


def present_in(index: Json) -> list[str]:
    """Return the components that model_index.json names."""
    entries = {name: index.get(name) for name in COMPONENTS}
    return [name for name, value in entries.items() if isinstance(value, list) and len(value) == 2 and value[1]]


def checked_index(index: Json, where: str) -> Json:
    """Return an SDXL pipeline's model_index.json; of one with more parts, as with a ControlNet, its base model's."""
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not re.fullmatch(r"StableDiffusionXL\w*Pipeline", kind):
        raise DistrijaxError(
            f"{where}: is a checkpoint of {kind}, not of Stable Diffusion XL; supported: {', '.join(PIPELINES)}"
        )
    entry.check(where, index, _FLAGS)
    present = present_in(index)
    if absent := [name for name in COMPONENTS if name not in present and name != "text_encoder"]:  # refiners lack it
        raise DistrijaxError(f"{where}: has no {absent[0]}")
    if kind in PIPELINES:
        return index
    ours = {*COMPONENTS, *TOKENIZERS.values(), "scheduler"}
    index = {name: value for name, value in index.items() if name in ours or not isinstance(value, list)}
    return {**index, "_class_name": PIPELINES[0]}


def _no_weights(folder: Path, name: str, variant: str | None) -> str:
    message = f"{folder}: there is no {weight_names(name, variant)[0]}"
    weights = sorted(path.name for path in folder.iterdir() if path.name.endswith((".safetensors", *PICKLES)))
    if not weights:
        return f"{message}, nor any other weights; is the download complete?"
    if all(weight.endswith(PICKLES) for weight in weights):
        return f"{message}, only {', '.join(weights)}: pickles can run code and are never read; save it as safetensors"
    named = [re.fullmatch(rf"{STEMS[name]}(?:\.(\w+?))?(?:-\d.*)?\.safetensors", weight) for weight in weights]
    others = sorted({f"variant={match[1]!r}" if match[1] else "no variant" for match in named if match})
    return f"{message}; present: {', '.join(weights)}" + (f"; ask for {' or '.join(others)}" if others else "")


def _not_a_pipeline(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    message = f"{folder}: is not a checkpoint: it has neither {MANIFEST} nor {MODEL_INDEX}"
    weights = [name for name in names if name.endswith((".safetensors", *PICKLES))]
    if "config.json" in names:
        return f"{message}; it looks like a single model ({read_json(folder / 'config.json').get('_class_name')})"
    if weights and weights[-1].endswith(PICKLES):
        return f"{message}, and {weights[-1]} is a pickle, which can run code and is never read"
    if weights:
        return f"{message}; give the file itself: {folder / weights[-1]}"
    return f"{message}; it holds {', '.join(names[:5])}{' …' * (len(names) > 5)}" if names else f"{folder}: is empty"
