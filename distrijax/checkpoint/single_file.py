"""The original single files: `sd_xl_base_1.0.safetensors`, `sd_xl_refiner_1.0.safetensors` and their descendants.

They hold the tensors of every model but no configuration and no tokenizer: the configuration is recognised by the
tensors' shapes or read from a diffusers folder, and the tokenizers' vocabulary comes from elsewhere.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from distrijax.checkpoint import ldm
from distrijax.checkpoint.component import Checkpoint, Component
from distrijax.checkpoint.files import MODEL_INDEX, read_json
from distrijax.checkpoint.folder import CLASSES, TOKENIZERS, check_pipeline, present_in
from distrijax.checkpoint.hub import TOKENIZER_PATTERNS, locate
from distrijax.checkpoint.known import packaged, published
from distrijax.checkpoint.tensors import Tensor, read_safetensors
from distrijax.checkpoint.tokenizers import Files, sdxl_tokenizers
from distrijax.config import UNetConfig, VAEConfig
from distrijax.config.entry import Json
from distrijax.errors import DistrijaxError

# Prefixes of a component's tensor names, of which a file's first match counts.
PREFIXES = {
    "unet": ("model.diffusion_model.", "unet."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("conditioner.embedders.0.transformer.", "text_encoder."),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "text_encoder_2."),
}
# Patterns that identify a component's tensors, without the prefix.
_SIGNS = {
    "unet": r"input_blocks\.|down_blocks\.",
    "vae": r"(encoder|decoder)\.(down|up|mid)",
    "text_encoder": r"(text_model\.)?embeddings\.token_embedding\.",
    "text_encoder_2": r"(text_model\.embeddings\.)?token_embedding\.",
}
_FIRST = ("input_blocks.0.0.weight", "conv_in.weight"), ("label_emb.0.0.weight", "add_embedding.linear_1.weight")

VOCABULARY = "openai/clip-vit-large-patch14"

# Tensors of such files that no model needs: the noise schedule of training, the copy of the weights that an optimiser
# averages (diffusers leaves it out too), CLIP's contrastive temperature, constants, and what `_model` reads.
IGNORED = re.compile(
    r"denoiser\.(sigmas|log_sigmas)|model_ema\..*|first_stage_model\.loss\..*"
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|scale_factor|logvar)"
    r"|conditioner\.embedders\.[01]\.model\.(logit_scale|attn_mask)"
    r"|conditioner\.embedders\.0\.transformer\.text_model\.embeddings\.position_ids|v_pred|ztsnr"
)

# The first pattern that matches a tensor's name tells what kind of model a file holds instead.
_OTHERS = (
    (r"lora_(unet|te\d?)_|.*\.lora_(A|B|up|down)\b", "a LoRA, which is added to a model and is not one itself"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux model"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"control_model\.|controlnet_|add_embedding\.linear_1|input_hint_block", "a ControlNet, or a part of one"),
    (r"cond_stage_model\.", "a Stable Diffusion 1 or 2 model"),
    (r"edm_(mean|std)", "a Playground v2.5 model, whose latents are scaled differently"),
    (r"(down_blocks|up_blocks|mid_block)\.", "a single U-Net: give a model, and this file as its unet"),
    (r"(encoder|decoder|first_stage_model)\.", "a single VAE: give a model, and this file as its vae"),
)


def open_single_file(
    path: Path, config: str | Path | None, tokenizer: str | Path | None, replaced: Mapping[str, Component]
) -> Checkpoint:
    """Open a single file in the original layout, reading and checking its header but no weights.

    Args:
        path: the file.
        config: a diffusers folder or hub id with the file's configurations; required except for SDXL base and refiner.
        tokenizer: a folder or hub id with CLIP's vocabulary, or with `tokenizer` and `tokenizer_2`; by default that
            of `config`, or OpenAI's on the hub.
        replaced: components to use in place of the file's own.
    """
    state = read_safetensors(path)
    model = _model(state, path, config)
    prefixes = {name: PREFIXES[name][0] for name in model.components}
    if "text_encoder" not in prefixes:
        prefixes["text_encoder_2"] = PREFIXES["text_encoder_2"][1]
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in prefixes}
    strangers = []
    for name, tensor in state.items():
        home = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), None)
        if IGNORED.fullmatch(name):
            continue
        if home is None:
            strangers.append(name)
        else:
            # Errors name tensors as diffusers does, so the original name is added to the file's.
            tensor = dataclasses.replace(tensor, file=f"{path} ({name})")
            groups[home][name.removeprefix(prefixes[home])] = tensor
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise DistrijaxError(f"{path}: holds tensors that are not part of SDXL: {', '.join(strangers[:5])}{more}")
    components = {}
    for name, component in model.components.items():
        if name not in replaced and not groups[name]:
            raise DistrijaxError(f"{path}: has no {name} (tensors {prefixes[name]}*); give one as {name}")
        components[name] = replaced.get(name) or _filled(component, groups[name], f"{path}, {name}")
    tokenizers = _tokenizers([TOKENIZERS[name] for name in components if name in TOKENIZERS], config, tokenizer, path)
    return dataclasses.replace(model, name=str(path), components=components, tokenizers=tokenizers)


def open_component_file(path: Path, name: str, config: str | Path | None) -> Component:
    """Open one component of a file: alone, under diffusers' or the original names, or as part of a whole model.

    Args:
        path: the file.
        name: name of the component.
        config: a component's or a pipeline's folder with its configuration; if None, the component's config.json beside
            the file, or SDXL's.
    """
    state = read_safetensors(path)
    for prefix in PREFIXES[name]:
        if inside := {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}:
            state = inside
            break
    state = {key: value for key, value in state.items() if not key.startswith(("loss.", "model_ema.", "logit_scale"))}
    if not any(re.match(_SIGNS[name], key) for key in state):
        raise DistrijaxError(f"{path}: holds no {name}")
    beside = path.parent / "config.json"
    if config is not None:
        folder = locate(config, ["config.json", f"{name}/config.json"])
        where = (folder / name if (folder / name).is_dir() else folder) / "config.json"
        values: Json = read_json(where)
    elif beside.is_file() and _describes(values := read_json(beside), name):
        where = beside
    else:
        kind = _kind(state) if name == "unet" else ""
        if kind is None:
            raise DistrijaxError(
                f"{path}: is neither SDXL base nor refiner by its shapes; put its config.json beside it"
            )
        where, values = path, packaged(f"{kind}_unet" if name == "unet" else name)
    return _filled(Component.from_json(name, values, str(where)), state, str(path))


def _describes(json: Json, name: str) -> bool:
    classes = [json.get("_class_name"), *(json.get("architectures") or [])]
    return any(kind in CLASSES[name] for kind in classes)


def _filled(component: Component, state: Mapping[str, Tensor], where: str) -> Component:
    pairs: Iterable[tuple[str, Tensor]] = state.items()
    if isinstance(component.config, UNetConfig):
        rename = ldm.unet_names(component.config)
        pairs = ((rename(key), value) for key, value in pairs)
    elif isinstance(component.config, VAEConfig):
        rename = ldm.vae_names(component.config)
        pairs = ((rename(key), value) for key, value in pairs)
    elif any(key.startswith("transformer.resblocks.") for key in state):
        pairs = ldm.open_clip(pairs)  # CLIP ViT-L already has transformers' names
    return component.with_torch_tensors(pairs, where)


def _model(state: Mapping[str, Tensor], path: Path, config: str | Path | None) -> Checkpoint:
    """Return the file's model without weights, configured by the tensors' shapes or by the folder `config`."""
    prefix = PREFIXES["unet"][0]
    kind = _kind({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})
    sdxl = kind != ""
    for pattern, what in _OTHERS[: 6 if sdxl else None]:
        if match := next((name for name in state if re.match(pattern, name)), None):
            raise DistrijaxError(f"{path}: is not an SDXL checkpoint but {what} (it holds {match})")
    if not sdxl:
        raise DistrijaxError(f"{path}: is not an SDXL checkpoint: it has no {prefix}label_emb.0.0.weight")
    if config is not None:
        folder = locate(config, ["*.json", "*/config.json", "scheduler/*.json", *TOKENIZER_PATTERNS])
        index = read_json(folder / MODEL_INDEX)
        check_pipeline(index, str(folder / MODEL_INDEX))
        components = {}
        for name in present_in(index):
            where = folder / name / "config.json"
            components[name] = Component.from_json(name, read_json(where), str(where), index[name][1])
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        return Checkpoint(str(folder), components, index, scheduler, {})
    if kind is None:
        raise DistrijaxError(
            f"{path}: is neither SDXL base nor refiner by its shapes; give a diffusers folder with its configuration "
            "as config"
        )
    model = published(kind)
    # Community models trained on v instead of noise contain empty tensors of these names.
    training: dict[str, object] = {"prediction_type": "v_prediction"} if "v_pred" in state else {}
    training |= {"rescale_betas_zero_snr": True} if "ztsnr" in state else {}
    return dataclasses.replace(model, scheduler={**model.scheduler, **training})


def _kind(unet: Mapping[str, Tensor]) -> str | None:
    """Return `base` or `refiner` if a U-Net has its shapes, None for another SDXL, "" for any other model."""
    shapes = [next((unet[name].shape for name in names if name in unet), ()) for names in _FIRST]
    if [len(shape) for shape in shapes] != [4, 2]:
        return ""
    return {(320, 2816): "base", (384, 2560): "refiner"}.get((shapes[0][0], shapes[1][1]))


def _tokenizers(
    names: list[str], config: str | Path | None, tokenizer: str | Path | None, path: Path
) -> dict[str, Files]:
    if tokenizer is None and config is not None:
        folder = locate(config, TOKENIZER_PATTERNS)
        if all((folder / name).is_dir() for name in names):
            tokenizer = folder
    try:
        folder = locate(tokenizer or VOCABULARY, TOKENIZER_PATTERNS)
    except DistrijaxError as error:
        if tokenizer is not None:
            raise
        raise DistrijaxError(
            f"{path}: a single file holds no tokenizer; give a folder with CLIP's vocab.json and merges.txt as "
            f"tokenizer ({error})"
        ) from error
    return sdxl_tokenizers(folder, tuple(names))
