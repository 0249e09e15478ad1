"""The original single files: `sd_xl_base_1.0.safetensors`, `sd_xl_refiner_1.0.safetensors` and their descendants.

They hold every model under one roof of names, no configuration and no tokenizer: the configuration is known by the
tensors' shapes or taken from a diffusers folder, the tokenizers' vocabulary comes from elsewhere.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distrijax.checkpoint import ldm
from distrijax.checkpoint.build import Blueprint, blueprint
from distrijax.checkpoint.files import MODEL_INDEX, read_json
from distrijax.checkpoint.folder import PROJECTS, TOKENIZERS, check_pipeline, present
from distrijax.checkpoint.hub import TOKENIZER_PATTERNS, locate
from distrijax.checkpoint.known import packaged, published
from distrijax.checkpoint.source import COMPONENTS, Component, Source
from distrijax.checkpoint.tables import convert
from distrijax.checkpoint.tensors import Tensor, read_safetensors
from distrijax.checkpoint.tokenizers import Files, sdxl_tokenizers
from distrijax.config import UNetConfig, VAEConfig
from distrijax.errors import DistrijaxError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = "conditioner.embedders.0.transformer."
BIG_G, REFINER_BIG_G = "conditioner.embedders.1.model.", "conditioner.embedders.0.model."

VOCABULARY = "openai/clip-vit-large-patch14"

# Found in such files and needed by no model: the training's noise schedule, the copy of the weights that an optimiser
# averages (diffusers leaves it out too), CLIP's contrastive temperature, constants, and what `_settings` reads.
IGNORED = re.compile(
    r"denoiser\.(sigmas|log_sigmas)|model_ema\..*|first_stage_model\.loss\..*"
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|scale_factor|logvar)"
    r"|conditioner\.embedders\.[01]\.model\.(logit_scale|attn_mask)"
    r"|conditioner\.embedders\.0\.transformer\.text_model\.embeddings\.position_ids|v_pred|ztsnr"
)

# The first tensor name that fits says what else a file may be.
_OTHERS = (
    (r"lora_(unet|te\d?)_|.*\.lora_(A|B|up|down)\b", "a LoRA, which is added to a model and is none itself"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux model"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"control_model\.|controlnet_|add_embedding\.linear_1|input_hint_block", "a ControlNet, or a part of one"),
    (r"cond_stage_model\.", "a Stable Diffusion 1 or 2 model"),
    (r"edm_(mean|std)", "a Playground v2.5 model, whose latents are scaled otherwise"),
    (r"(down_blocks|up_blocks|mid_block)\.", "a single U-Net of a diffusers folder: give the pipeline's folder"),
    (r"(encoder|decoder|first_stage_model)\.", "a single VAE: give a model, and this file as its vae"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the file itself does not say: model_index.json, scheduler_config.json and the components' config.json."""

    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    where: str


def open_single_file(
    path: Path,
    *,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    vae: Component | None = None,
) -> Source:
    """A single file in the original layout. Its header is read and checked, no weights.

    config: a diffusers folder or hub id whose configurations are the file's; needed unless it is SDXL base or refiner.
    tokenizer: a folder or hub id with CLIP's vocabulary, or with `tokenizer` and `tokenizer_2`; the default is that of
        `config`, or else OpenAI's on the hub.
    vae: taken instead of the file's own.
    """
    state = read_safetensors(path)
    settings = _settings(state, path, config)
    wanted = [name for name in COMPONENTS if present(settings.index, name)]
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in wanted}
    prefixes = {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L}
    prefixes["text_encoder_2"] = BIG_G if "text_encoder" in wanted else REFINER_BIG_G
    strangers = []
    for name, tensor in state.items():
        home = next((part for part in wanted if name.startswith(prefixes[part])), None)
        if IGNORED.fullmatch(name):
            continue
        if home is None:
            strangers.append(name)
        else:
            # The message of a misfit has diffusers' name; the original one goes along with the file's.
            tensor = dataclasses.replace(tensor, file=f"{path} ({name})")
            groups[home][name.removeprefix(prefixes[home])] = tensor
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise DistrijaxError(f"{path}: holds tensors that are no part of SDXL: {', '.join(strangers[:5])}{more}")

    components = {}
    for name in wanted:
        if name == "vae" and vae is not None:
            components[name] = vae
            continue
        if not groups[name]:
            cure = "; give one as vae" if name == "vae" else ""
            raise DistrijaxError(f"{path}: has no {name} (tensors {prefixes[name]}*){cure}")
        kind = settings.index[name][1]
        blue = blueprint(name, settings.configs[name], settings.where, with_projection=PROJECTS.get(kind))
        tensors = convert(blue.table(), _renamed(blue, name, groups[name]), blue.shapes, f"{path}, {name}")
        prefix = "text_model." if name in TOKENIZERS else ""
        components[name] = Component(name, settings.configs[name], blue, tensors, str(path), prefix)
    tokenizers = _tokenizers(wanted, config, tokenizer, path)
    return Source(str(path), components, settings.scheduler, settings.index, tokenizers)


def open_vae_file(path: Path, config: str | Path | None = None) -> Component:
    """A VAE alone in a file, under diffusers' or the original names.

    config: a VAE's or a pipeline's folder with its configuration; if None, a VAE's config.json beside the file, or else
        SDXL's.
    """
    state = read_safetensors(path)
    for prefix in (VAE, "vae."):
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        state = inside or state
    state = {name: value for name, value in state.items() if not name.startswith(("loss.", "model_ema."))}
    if not any(re.match(r"(encoder|decoder)\.", name) for name in state):
        raise DistrijaxError(f"{path}: holds no VAE")
    values, where = _vae_config(path, config)
    blue = blueprint("vae", values, where)
    assert isinstance(blue.config, VAEConfig)
    rename = ldm.vae_names(blue.config)
    tensors = convert(blue.table(), ((rename(name), value) for name, value in state.items()), blue.shapes, str(path))
    return Component("vae", values, blue, tensors, str(path))


def _vae_config(path: Path, config: str | Path | None) -> tuple[Mapping[str, Any], str]:
    if config is not None:
        folder = locate(config, ["config.json", "vae/config.json"])
        found = folder / "vae" if (folder / "vae").is_dir() else folder
        return read_json(found / "config.json"), str(found / "config.json")
    beside = path.parent / "config.json"
    if beside.is_file() and (values := read_json(beside)).get("_class_name") == "AutoencoderKL":
        return values, str(beside)
    return packaged("vae"), "SDXL's own VAE configuration"


def _renamed(blue: Blueprint, name: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if name == "text_encoder_2":
        return ldm.open_clip(tensors.items())
    if isinstance(blue.config, UNetConfig):
        rename = ldm.unet_names(blue.config)
    elif isinstance(blue.config, VAEConfig):
        rename = ldm.vae_names(blue.config)
    else:
        rename = str  # CLIP ViT-L has transformers' names there already
    return ((rename(key), value) for key, value in tensors.items())


def _settings(state: Mapping[str, Tensor], path: Path, config: str | Path | None) -> Settings:
    kind = _kind(state, path)
    if config is not None:
        folder = locate(config, ["*.json", "*/config.json", "scheduler/*.json", *TOKENIZER_PATTERNS])
        index = read_json(folder / MODEL_INDEX)
        check_pipeline(index, str(folder / MODEL_INDEX))
        names = [name for name in COMPONENTS if present(index, name)]
        configs = {name: read_json(folder / name / "config.json") for name in names}
        return Settings(index, read_json(folder / "scheduler" / "scheduler_config.json"), configs, str(folder))
    if kind is None:
        raise DistrijaxError(
            f"{path}: is neither SDXL base nor refiner by its shapes; give a diffusers folder with its configuration "
            "as config"
        )
    index, configs = published(kind)
    scheduler = packaged("scheduler")
    # Community models trained on v instead of noise say so by empty tensors of these names.
    if "v_pred" in state:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in state:
        scheduler["rescale_betas_zero_snr"] = True
    return Settings(index, scheduler, configs, f"SDXL {kind}'s own configuration")


def _kind(state: Mapping[str, Tensor], path: Path) -> str | None:
    """`base` or `refiner` if the shapes are theirs, None if another SDXL. Raises DistrijaxError if it is no SDXL."""
    names = (f"{UNET}input_blocks.0.0.weight", f"{UNET}label_emb.0.0.weight")
    shapes = [state[name].shape for name in names if name in state]
    sdxl = list(map(len, shapes)) == [4, 2]
    for pattern, what in _OTHERS[: 6 if sdxl else None]:
        if found := next((name for name in state if re.match(pattern, name)), None):
            raise DistrijaxError(f"{path}: is not an SDXL checkpoint but {what} (it holds {found})")
    if not sdxl:
        raise DistrijaxError(f"{path}: is not an SDXL checkpoint: it has no {UNET}label_emb.0.0.weight")
    return {(320, 2816): "base", (384, 2560): "refiner"}.get((shapes[0][0], shapes[1][1]))


def _tokenizers(
    wanted: list[str], config: str | Path | None, tokenizer: str | Path | None, path: Path
) -> dict[str, Files]:
    names = tuple(TOKENIZERS[name] for name in wanted if name in TOKENIZERS)
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
    return sdxl_tokenizers(folder, names)
