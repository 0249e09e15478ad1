"""The diffusers format: a folder with model_index.json and one folder a component."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distrijax.checkpoint.build import blueprint
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, read_json
from distrijax.checkpoint.hub import STEMS, weight_names
from distrijax.checkpoint.source import COMPONENTS, Component, Source
from distrijax.checkpoint.tables import convert
from distrijax.checkpoint.tensors import Tensor, read_safetensors
from distrijax.checkpoint.tokenizers import Files, read_tokenizer
from distrijax.errors import DistrijaxError

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
PROJECTS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def open_folder(folder: Path, variant: str | None = None) -> Source:
    """A folder written by diffusers' `save_pretrained`. Headers and configurations are read and checked, no weights."""
    if not (folder / MODEL_INDEX).is_file():
        raise DistrijaxError(_not_a_pipeline(folder))
    index = read_json(folder / MODEL_INDEX)
    check_pipeline(index, str(folder / MODEL_INDEX))
    components = {}
    for name in COMPONENTS:
        if present(index, name):
            kind = index[name][1]
            components[name] = open_component(folder / name, name, variant, PROJECTS.get(kind))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return Source(str(folder), components, scheduler, index, read_tokenizers(folder, components))


def read_tokenizers(folder: Path, components: Iterable[str]) -> dict[str, Files]:
    """The tokenizers of those text encoders that there are."""
    return {TOKENIZERS[name]: read_tokenizer(folder / TOKENIZERS[name]) for name in components if name in TOKENIZERS}


def open_component(
    folder: Path, name: str, variant: str | None = None, with_projection: bool | None = None
) -> Component:
    """One model's folder: config.json and its weights."""
    if not folder.is_dir():
        raise DistrijaxError(f"{folder}: there is no such folder, but the checkpoint needs it for its {name}")
    config = read_json(folder / "config.json")
    blue = blueprint(name, config, str(folder / "config.json"), with_projection=with_projection)
    state = read_weights(folder, name, variant)
    prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
    tensors = convert(blue.table(prefix), state.items(), blue.shapes, str(folder))
    return Component(name, config, blue, tensors, str(folder), prefix)


def read_weights(folder: Path, name: str, variant: str | None) -> dict[str, Tensor]:
    """A component's tensors by torch name, from one file or from the parts that an index names."""
    file, index = weight_names(name, variant)
    whole, split = (folder / file).is_file(), (folder / index).is_file()
    if whole and split:
        raise DistrijaxError(f"{folder}: holds both {file} and {index}; remove one, they may differ")
    if whole:
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
    tensors: dict[str, Tensor] = {}
    for part in parts:
        for key, tensor in read_safetensors(folder / part).items():
            if names.get(key) != part:
                elsewhere = f"places it in {names[key]}" if key in names else "does not know it"
                raise DistrijaxError(f"{folder / part}: holds tensor {key!r}, but {index} {elsewhere}")
            tensors[key] = tensor
    if lost := sorted(set(names) - set(tensors)):
        part = folder / names[lost[0]]
        raise DistrijaxError(f"{part}: {len(lost)} tensors are not where {index} places them, such as {lost[0]!r}")
    return tensors


def present(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] is not None


def check_pipeline(index: Mapping[str, Any], where: str) -> None:
    """Whether model_index.json tells of an SDXL pipeline made of the classes that are supported."""
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise DistrijaxError(
            f"{where}: is a checkpoint of {kind}, not of Stable Diffusion XL; supported: {', '.join(PIPELINES)}"
        )
    for name, classes in CLASSES.items():
        if not present(index, name):
            if name != "text_encoder":  # refiners have only the second
                raise DistrijaxError(f"{where}: has no {name}")
        elif index[name][1] not in classes:
            raise DistrijaxError(f"{where}: {name} is a {index[name][1]}; supported: {', '.join(classes)}")


def _no_weights(folder: Path, name: str, variant: str | None) -> str:
    file, _ = weight_names(name, variant)
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = [name for name in files if name.endswith((".safetensors", *_PICKLES))]
    wanted = f"{folder}: there is no {file}"
    if not weights:
        return f"{wanted}, nor any other weights; is the download complete?"
    if all(weight.endswith(_PICKLES) for weight in weights):
        return (
            f"{wanted}, only {', '.join(weights)}: pickles can run code and are never read; "
            "find the model as safetensors, or save it again as such"
        )
    stem = STEMS[name]
    middles = {weight.removeprefix(stem).removesuffix(".safetensors") for weight in weights if weight.startswith(stem)}
    variants = sorted({middle.strip(".").split("-0")[0] for middle in middles if middle.startswith(".")})
    cures = [f"variant={found!r}" for found in variants] + ["no variant"] * ("" in middles and variant is not None)
    return f"{wanted}; present: {', '.join(weights)}" + (f"; ask for {' or '.join(cures)}" if cures else "")


def _not_a_pipeline(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    wanted = f"{folder}: is not a checkpoint: it has neither {MANIFEST} nor {MODEL_INDEX}"
    if not names:
        return f"{folder}: is empty"
    if singles := [name for name in names if name.endswith(".safetensors")]:
        if "config.json" in names:
            return f"{wanted}; it looks like a single model ({read_json(folder / 'config.json').get('_class_name')})"
        return f"{wanted}; give the file itself: {folder / singles[0]}"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return f"{wanted}, and {pickles[0]} is a pickle, which can run code and is never read"
    return f"{wanted}; it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
