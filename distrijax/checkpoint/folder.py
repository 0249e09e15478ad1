"""The diffusers format: a folder with model_index.json and one folder per component."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from distrijax.checkpoint.component import COMPONENTS, Checkpoint, Component
from distrijax.checkpoint.files import MANIFEST, MODEL_INDEX, read_json
from distrijax.checkpoint.hub import STEMS, weight_names
from distrijax.checkpoint.tensors import Tensor, read_safetensors
from distrijax.checkpoint.tokenizers import Files, read_tokenizer
from distrijax.config.entry import Json
from distrijax.config.text_encoder import WITH_PROJECTION
from distrijax.errors import DistrijaxError

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": tuple(WITH_PROJECTION),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def open_folder(
    folder: Path, variant: str | None, replaced: Mapping[str, Component], scheduler: Json | None
) -> Checkpoint:
    """Open a folder written by diffusers' `save_pretrained`, reading headers and configurations but no weights.

    Args:
        folder: the folder.
        variant: suffix of the weights' file names, such as "fp16".
        replaced: components to use in place of the folder's own, which are not read.
        scheduler: the same for scheduler_config.json.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise DistrijaxError(_not_a_pipeline(folder))
    index = read_json(folder / MODEL_INDEX)
    check_pipeline(index, str(folder / MODEL_INDEX), replaced)
    components = {
        name: replaced.get(name) or open_component(folder / name, name, variant, index[name][1])
        for name in present_in(index)
    }
    scheduler = scheduler or read_json(folder / "scheduler" / "scheduler_config.json")
    return Checkpoint(str(folder), components, index, scheduler, read_tokenizers(folder, components))


def read_tokenizers(folder: Path, components: Iterable[str]) -> dict[str, Files]:
    """Return the tokenizers of the text encoders among `components`."""
    return {TOKENIZERS[name]: read_tokenizer(folder / TOKENIZERS[name]) for name in components if name in TOKENIZERS}


def open_component(folder: Path, name: str, variant: str | None, class_name: str | None = None) -> Component:
    """Open one model's folder: config.json and its weights."""
    if not folder.is_dir():
        raise DistrijaxError(f"{folder}: there is no such folder, but the checkpoint needs it for its {name}")
    where = folder / "config.json"
    component = Component.from_json(name, read_json(where), str(where), class_name)
    state = read_weights(folder, name, variant)
    prefix = "text_model." if any(key.startswith("text_model.") for key in state) else ""
    return component.with_torch_tensors(state.items(), str(folder), prefix)


def read_weights(folder: Path, name: str, variant: str | None) -> dict[str, Tensor]:
    """Return a component's tensors by torch name, from one file or from the parts that an index names."""
    file, index = weight_names(name, variant)
    whole, split = (folder / file).is_file(), (folder / index).is_file()
    if whole and split:
        raise DistrijaxError(f"{folder}: holds both {file} and {index}, which may differ; remove one of them")
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
    if missing := sorted(set(names) - set(tensors)):
        part = folder / names[missing[0]]
        raise DistrijaxError(f"{part}: {len(missing)} tensors are not where {index} puts them, such as {missing[0]!r}")
    return tensors


def present_in(index: Json) -> list[str]:
    """Return the components that model_index.json names."""
    entries = {name: index.get(name) for name in COMPONENTS}
    return [name for name, value in entries.items() if isinstance(value, list) and len(value) == 2 and value[1]]


def check_pipeline(index: Json, where: str, replaced: Iterable[str] = ()) -> None:
    """Check that a model_index.json is an SDXL pipeline's, with components of supported classes or replaced ones."""
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise DistrijaxError(
            f"{where}: is a checkpoint of {kind}, not of Stable Diffusion XL; supported: {', '.join(PIPELINES)}"
        )
    present = present_in(index)
    for name, classes in CLASSES.items():
        if name not in present:
            if name != "text_encoder":  # refiners have only the second
                raise DistrijaxError(f"{where}: has no {name}")
        elif name not in replaced and index[name][1] not in classes:
            raise DistrijaxError(f"{where}: {name} is a {index[name][1]}; supported: {', '.join(classes)}")


def _no_weights(folder: Path, name: str, variant: str | None) -> str:
    file, _ = weight_names(name, variant)
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = [name for name in files if name.endswith((".safetensors", *_PICKLES))]
    message = f"{folder}: there is no {file}"
    if not weights:
        return f"{message}, nor any other weights; is the download complete?"
    if all(weight.endswith(_PICKLES) for weight in weights):
        return (
            f"{message}, only {', '.join(weights)}: pickles can run code and are never read; "
            "find the model as safetensors, or save it so"
        )
    stem = STEMS[name]
    middles = {weight.removeprefix(stem).removesuffix(".safetensors") for weight in weights if weight.startswith(stem)}
    variants = sorted({middle.strip(".").split("-0")[0] for middle in middles if middle.startswith(".")})
    cures = [f"variant={other!r}" for other in variants] + ["no variant"] * ("" in middles and variant is not None)
    return f"{message}; present: {', '.join(weights)}" + (f"; ask for {' or '.join(cures)}" if cures else "")


def _not_a_pipeline(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    message = f"{folder}: is not a checkpoint: it has neither {MANIFEST} nor {MODEL_INDEX}"
    if not names:
        return f"{folder}: is empty"
    if singles := [name for name in names if name.endswith(".safetensors")]:
        if "config.json" in names:
            return f"{message}; it looks like a single model ({read_json(folder / 'config.json').get('_class_name')})"
        return f"{message}; give the file itself: {folder / singles[0]}"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return f"{message}, and {pickles[0]} is a pickle, which can run code and is never read"
    return f"{message}; it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
