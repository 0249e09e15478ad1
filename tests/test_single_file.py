"""The original single files, against an inverse of the names written here and against diffusers' own converters."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from flax import nnx
from helpers_checkpoint import (
    assert_same_states,
    base_parts,
    base_pipeline,
    refiner_pipeline,
    states,
    write_tokenizer,
)
from safetensors.torch import load_file, save_file

from distrijax import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from distrijax.checkpoint import Component, convert, export, ldm, load, open_source, recognise
from distrijax.checkpoint.known import packaged
from distrijax.checkpoint.recognise import HARMLESS
from distrijax.checkpoint.tensors import Tensor
from distrijax.errors import DistrijaxError

State = dict[str, torch.Tensor]


def ldm_unet(state: dict[str, Any], down_types: Any, up_types: Any, layers: int) -> dict[str, Any]:
    """diffusers' names to the original ones, by counting; the other direction than the package's."""
    outside = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    outside |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    outside |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    inside = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    inside |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

    def name(key: str) -> str:
        for new, old in outside.items():
            if key.startswith(new + "."):
                return key.replace(new, old)
        match = re.fullmatch(r"(\w+?)_blocks?\.(?:(\d+)\.)?(\w+?)s\.(\d+)\.(.+)", key)
        side, block, kind, number, rest = (int(part) if part and part.isdigit() else part for part in match.groups())
        if kind == "resnet":
            rest = re.sub(r"^\w+", lambda m: inside[m[0]], rest)
        if side == "mid":
            return f"middle_block.{1 if kind == 'attention' else 2 * number}.{rest}"
        first = (block or 0) * (layers + 1)
        if side == "down":
            if kind == "downsampler":
                return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
            return f"input_blocks.{first + number + 1}.{int(kind == 'attention')}.{rest}"
        if kind == "upsampler":
            return f"output_blocks.{first + layers}.{1 + ('CrossAttn' in up_types[block])}.{rest}"
        return f"output_blocks.{first + number}.{int(kind == 'attention')}.{rest}"

    return {name(key): value for key, value in state.items()}


def ldm_vae(state: dict[str, Any], blocks: int) -> dict[str, Any]:
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    result = {}
    for key, value in state.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        if "attentions" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in attention.items():
                name = name.replace(f".{new}.", f".{old}.")
            if value.ndim == 2:
                value = value[:, :, None, None]  # 1x1 convolutions there
        result[name] = value
    return result


def open_clip(state: State, layers: int) -> State:
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": torch.tensor(2.5),
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(layers):
        for leaf in ("weight", "bias"):
            at, to = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            result[f"{to}.attn.in_proj_{leaf}"] = torch.cat([state[f"{at}.self_attn.{p}_proj.{leaf}"] for p in "qkv"])
            result[f"{to}.attn.out_proj.{leaf}"] = state[f"{at}.self_attn.out_proj.{leaf}"]
            for new, old in inside.items():
                result[f"{to}.{old}.{leaf}"] = state[f"{at}.{new}.{leaf}"]
    return result


def single(pipe: Any) -> State:
    """A pipeline as one file in the original layout, with what else is in such files."""
    parts = states(pipe)
    config = pipe.unet.config
    unet = ldm_unet(parts["unet"], config.down_block_types, config.up_block_types, config.layers_per_block)
    result = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    vae = ldm_vae(parts["vae"], len(pipe.vae.config.block_out_channels))
    result |= {f"first_stage_model.{key}": value for key, value in vae.items()}
    place = 0
    if pipe.text_encoder is not None:
        at, place = "conditioner.embedders.0.transformer.text_model.", 1
        result |= {at + key.removeprefix("text_model."): value for key, value in parts["text_encoder"].items()}
        result[at + "embeddings.position_ids"] = torch.arange(77)[None]
    layers = pipe.text_encoder_2.config.num_hidden_layers
    clip = open_clip(parts["text_encoder_2"], layers)
    result |= {f"conditioner.embedders.{place}.model.{key}": value for key, value in clip.items()}
    result |= {"denoiser.sigmas": torch.ones(10), "alphas_cumprod": torch.ones(10)}
    result["model_ema.diffusion_modelinput_blocks00weight"] = torch.zeros(3)
    return {key: value.contiguous() for key, value in result.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("base")
    pipe = base_pipeline(folder / "tokenizers")
    pipe.save_pretrained(folder / "folder")
    save_file(single(pipe), folder / "single.safetensors")
    config = shutil.copytree(folder / "folder", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return {"pipe": pipe, "folder": folder / "folder", "file": folder / "single.safetensors", "config": config}


@pytest.fixture
def as_sdxl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models in place of the real sizes, which a file is recognised by."""
    from distrijax.checkpoint import known, recognise

    small = {name: dict(module.config.to_dict() if hasattr(module.config, "to_dict") else module.config)
             for name, module in base_parts().items()}  # fmt: skip
    small["base_unet"] = small["unet"]

    def smaller(name: str) -> dict[str, Any]:
        return json.loads(json.dumps(small[name])) if name in small else packaged(name)

    monkeypatch.setattr(known, "packaged", smaller)
    monkeypatch.setattr(recognise, "published_form", lambda unet: ("base", {}))


def leaves(components: Any) -> list[bytes]:
    models = components.unet, components.vae, components.text_encoder, components.text_encoder_2
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves([nnx.state(model) for model in models if model])]


def refused(source: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(DistrijaxError) as caught:
        open_source(source, **options)
    for part in parts:
        assert part in str(caught.value)


def test_base(base: dict[str, Any], tmp_path: Path) -> None:
    expected = load(base["folder"], progress=False)
    direct = load(base["file"], config=base["config"], progress=False)
    assert leaves(direct) == leaves(expected)
    assert direct.tokenizer == expected.tokenizer
    assert direct.scheduler.config == expected.scheduler.config
    converted = convert(base["file"], tmp_path / "converted", config=base["config"], progress=False)
    assert leaves(load(converted, progress=False)) == leaves(expected)
    export(converted, tmp_path / "back", progress=False)
    kind = type(base["pipe"])
    back = kind.from_pretrained(tmp_path / "back", add_watermarker=False, low_cpu_mem_usage=False)
    assert_same_states(back, base["pipe"])
    names = load_file(tmp_path / "back" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)


def test_refiner(tmp_path: Path) -> None:
    pipe = refiner_pipeline(tmp_path / "tokenizers")
    pipe.save_pretrained(tmp_path / "folder")
    save_file(single(pipe), tmp_path / "single.safetensors")
    ours = load(tmp_path / "single.safetensors", config=tmp_path / "folder", progress=False)
    assert ours.text_encoder is None
    assert ours.index["requires_aesthetics_score"] is True
    assert leaves(ours) == leaves(load(tmp_path / "folder", progress=False))


def test_known_without_a_configuration(base: dict[str, Any], as_sdxl: None, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "clip", "<|endoftext|>")
    ours = load(base["file"], tokenizer=tmp_path / "clip", progress=False)
    assert leaves(ours) == leaves(load(base["folder"], progress=False))
    assert ours.scheduler.class_name == "EulerDiscreteScheduler"
    assert ours.scheduler.prediction_type == "epsilon"
    assert ours.index["force_zeros_for_empty_prompt"] is True
    pads = [json.loads(files["tokenizer_config.json"])["pad_token"] for files in (ours.tokenizer, ours.tokenizer_2)]
    assert pads == ["<|endoftext|>", "!"]
    refused(base["file"], "a single file holds no tokenizer", "as tokenizer", "openai/clip-vit-large-patch14")
    refused(base["file"], f"{tmp_path}/elsewhere", tokenizer=tmp_path / "elsewhere")
    state = load_file(base["file"]) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(state, tmp_path / "v.safetensors")
    scheduler = open_source(tmp_path / "v.safetensors", tokenizer=tmp_path / "clip").scheduler
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_unknown_sizes_need_a_configuration(base: dict[str, Any]) -> None:
    refused(base["file"], "neither SDXL base nor refiner by its shapes", "as config")


def test_another_vae(base: dict[str, Any], tmp_path: Path) -> None:
    """From the VAE's own single file in either naming; and one where the file has none."""
    vae = base["pipe"].vae.state_dict()
    changed = {key: value + 1 for key, value in vae.items()}
    layouts = {
        "original": ldm_vae(changed, 2),
        "prefixed": {f"first_stage_model.{key}": value for key, value in ldm_vae(changed, 2).items()},
        "diffusers": changed,
    }
    state = load_file(base["file"])
    without = {key: value for key, value in state.items() if not key.startswith("first_stage_model.")}
    save_file(without, tmp_path / "without.safetensors")
    refused(tmp_path / "without.safetensors", "holds no vae", "give one as vae", config=base["config"])
    for name, layout in layouts.items():
        save_file({key: value.contiguous() for key, value in layout.items()}, tmp_path / f"{name}.safetensors")
        for source in (base["file"], tmp_path / "without.safetensors"):
            ours = load(source, config=base["config"], vae=tmp_path / f"{name}.safetensors", progress=False)
            kernel = np.asarray(ours.vae.decoder.mid_block.attentions[0].to_q.kernel[...])
            assert np.array_equal(kernel, changed["decoder.mid_block.attentions.0.to_q.weight"].numpy().T)
    shutil.copy(base["folder"] / "vae" / "config.json", tmp_path / "config.json")
    load(base["folder"], vae=tmp_path / "original.safetensors", progress=False)
    unet = base["folder"] / "unet" / "diffusion_pytorch_model.safetensors"
    refused(base["file"], "holds no vae", config=base["config"], vae=unet)


def test_misfits_are_listed_with_their_own_names(base: dict[str, Any], tmp_path: Path) -> None:
    file, state = tmp_path / "single.safetensors", load_file(base["file"])
    at = "model.diffusion_model."
    broken = {key: value for key, value in state.items() if key != at + "output_blocks.2.2.conv.bias"}
    broken[at + "output_blocks.9.0.in_layers.0.weight"] = torch.zeros(3)
    broken[at + "input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(broken, file)
    refused(
        file,
        "up_blocks.0.upsamplers.0.conv.bias [64]",
        "output_blocks.9.0.in_layers.0.weight [3]",
        f"conv_in.weight: [32, 9, 3, 3] in {file} ({at}input_blocks.0.0.weight), the model needs [32, 4, 3, 3]",
        config=base["config"],
    )
    clip = "conditioner.embedders.1.model."
    broken = state | {clip + "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(95, 32)}
    save_file(broken, file)
    refused(file, "3 missing", "attn.in_proj_weight [95, 32]", config=base["config"])
    broken = {key: value for key, value in state.items() if not key.startswith(clip)}
    save_file(broken, file)
    refused(file, f"holds no text_encoder_2 (tensors {clip}*)", config=base["config"])
    save_file(state | {"another.weight": torch.zeros(1), "stranger": torch.zeros(1)}, file)
    refused(file, "holds tensors that are not part of SDXL: another.weight, stranger", config=base["config"])
    # Both the original name and diffusers' for one tensor.
    doubled = state | {at + "conv_in.bias": state[at + "input_blocks.0.0.bias"].clone()}
    save_file(doubled, file)
    refused(file, "1 duplicated", f"{at}conv_in.bias", f"{at}input_blocks.0.0.bias", config=base["config"])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux model"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "a Flux model"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "a Stable Diffusion 3 model"),
        ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight", "a Stable Diffusion 1 or 2"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.1.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "a single U-Net: give a model, and this file as its unet"),
        ("add_embedding.linear_1.weight", "it holds no unet"),
        ("first_stage_model.encoder.conv_in.weight", "a single VAE"),
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "its U-Net has no label_emb.0.0.weight, like those of Stable",
        ),
        ("something", "it holds no unet (tensors model.diffusion_model.*)"),
    ],
)
def test_files_of_other_models(name: str, what: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(4)}, tmp_path / "file.safetensors")
    refused(tmp_path / "file.safetensors", what)


def test_other_options(base: dict[str, Any], tmp_path: Path) -> None:
    refused(base["file"], "has no variant 'fp16'", variant="fp16", config=base["config"])
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(base["file"], "a checkpoint of FluxPipeline", config=tmp_path)


def test_names_are_those_of_diffusers_converters(base: dict[str, Any]) -> None:
    """The file this module writes, read by diffusers' converters: the same tensors under the same names."""
    state, pipe = load_file(base["file"]), base["pipe"]
    parts = states(pipe)
    unet = theirs.convert_ldm_unet_checkpoint(dict(state), dict(pipe.unet.config))
    vae = theirs.convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config))
    clip = theirs.convert_open_clip_checkpoint(pipe.text_encoder_2, dict(state), "conditioner.embedders.1.model.")
    for name, converted in (("unet", unet), ("vae", vae), ("text_encoder_2", clip)):
        assert set(converted) == set(parts[name])
        assert all(torch.equal(converted[key], value) for key, value in parts[name].items())


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_names_at_full_size(kind: str) -> None:
    """Every tensor of the real U-Nets: our names from the original ones are those of diffusers' converter."""
    config = packaged(f"{kind}_unet")
    component = Component.from_json("unet", config, kind)
    torch_names = [component.table().to_torch(path).name for path in component.shapes]
    original = ldm_unet({name: name for name in torch_names}, config["down_block_types"], config["up_block_types"], 2)
    assert len(original) == len(torch_names)
    rename = ldm.unet_names(component.config)
    assert {rename(key): value for key, value in original.items()} == {name: name for name in torch_names}
    prefixed = {f"model.diffusion_model.{key}": value for key, value in original.items()}
    converted = theirs.convert_ldm_unet_checkpoint(prefixed, config)
    assert {key: value for key, value in converted.items() if value is not None} == {name: name for name in torch_names}


def test_the_vae_at_full_size() -> None:
    component = Component.from_json("vae", packaged("vae"), "vae")
    names = {component.table().to_torch(path).name: torch.zeros(1, 1) for path in component.shapes}
    rename = ldm.vae_names(component.config)
    original = ldm_vae(names, 4)
    assert [rename(key) for key in original] == list(names)
    assert "decoder.up.3.upsample.conv.weight" in original
    assert "decoder.up.0.upsample.conv.weight" not in original


def test_what_is_ignored() -> None:
    for name in ("denoiser.sigmas", "model_ema.decay", "first_stage_model.loss.logvar", "sqrt_alphas_cumprod",
                 "posterior_variance"):  # fmt: skip
        assert HARMLESS.fullmatch(name)
    for name in ("model.diffusion_model.denoiser.sigmas", "my_sqrt_x", "conditioner.embedders.1.model.text_projection"):
        assert not HARMLESS.fullmatch(name)


HARMLESS_TENSORS = {
    "conditioner.embedders.0.transformer.logit_scale": (),
    "conditioner.embedders.0.transformer.text_projection.weight": (32, 32),
    "conditioner.embedders.0.transformer.text_projection": (32, 32),
    "conditioner.embedders.0.transformer.vision_model.embeddings.class_embedding": (8,),
    "conditioner.embedders.1.model.text_model.embeddings.position_ids": (1, 77),
    "conditioner.embedders.1.model.embeddings.position_ids": (1, 77),
    "conditioner.embedders.1.model.attn_mask": (77, 77),
    "conditioner.embedders.1.model.visual.proj": (8, 8),
    "denoiser.log_sigmas": (10,),
    "posterior_mean_coef1": (10,),
    "log_one_minus_alphas_cumprod": (10,),
    "first_stage_model.loss.discriminator.main.0.weight": (4,),
    "optimizer_states.0.step": (),
    "global_step": (),
}


def test_harmless_tensors_are_ignored_and_named_once(
    base: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {name: torch.ones(shape) for name, shape in HARMLESS_TENSORS.items()}
    save_file(load_file(base["file"]) | extra, tmp_path / "file.safetensors")
    ours = load(tmp_path / "file.safetensors", config=base["config"], progress=False)
    assert leaves(ours) == leaves(load(base["folder"], progress=False))
    named = [
        record.getMessage().rpartition(": ")[2].split(", ") for record in caplog.records if "tensors" in record.msg
    ]
    assert len(named) == 3, "the file, and each of its text encoders"
    assert all(len(names) == len(set(names)) for names in named)
    for name in HARMLESS_TENSORS:
        assert any(name.endswith(word) for names in named for word in names), name
    for name in ("text_model.encoder.layers.9.mlp.fc1.weight", "text_model.embeddings.extra"):
        save_file(load_file(base["file"]) | {f"conditioner.embedders.0.transformer.{name}": torch.ones(2)},
                  tmp_path / "file.safetensors")  # fmt: skip
        refused(tmp_path / "file.safetensors", name, config=base["config"])


def test_v_prediction_is_believed_with_a_configuration_too(base: dict[str, Any], tmp_path: Path) -> None:
    flags = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(load_file(base["file"]) | flags, tmp_path / "v.safetensors")
    prefix = "model.diffusion_model."
    unet = {key: value for key, value in load_file(base["file"]).items() if key.startswith(prefix)}
    save_file(unet | flags, tmp_path / "unet.safetensors")
    whole = open_source(tmp_path / "v.safetensors", config=base["config"]).scheduler
    alone = open_source(base["folder"], unet=tmp_path / "unet.safetensors", config=base["config"]).scheduler
    for scheduler in (whole, alone):
        assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    given = load(tmp_path / "v.safetensors", config=base["config"], scheduler=base["config"], progress=False)
    assert given.scheduler.prediction_type == "epsilon"  # what the caller asks for comes first


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("edm_mean", "a Playground v2.5 model"),
        ("edm_vpred.sigma_max", "a CosXL model"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("input_hint_block.0.weight", "a ControlNet"),
        ("model.diffusion_model.out.2.scale_weight", "a quantised model"),
        ("scaled_fp8", "a quantised model"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
    ],
)
def test_what_else_a_file_may_be(extra: str, what: str, base: dict[str, Any], tmp_path: Path) -> None:
    """Also where it is given as the U-Net, and with a configuration."""
    save_file(load_file(base["file"]) | {extra: torch.zeros(4)}, tmp_path / "file.safetensors")
    refused(tmp_path / "file.safetensors", f"is not an SDXL checkpoint but {what}", extra)
    refused(tmp_path / "file.safetensors", what, config=base["config"])
    refused(base["folder"], what, unet=tmp_path / "file.safetensors")


def test_fp8_files_are_called_what_they_are(base: dict[str, Any], tmp_path: Path) -> None:
    unet = {key: value.to(torch.float8_e4m3fn) if key.startswith("model.") else value
            for key, value in load_file(base["file"]).items()}  # fmt: skip
    save_file(unet, tmp_path / "file.safetensors")
    refused(tmp_path / "file.safetensors", "an fp8 model", "float8_e4m3fn", "use the fp16 or bf16 file")


@pytest.mark.parametrize(
    ("channels", "purpose"),
    [(8, "InstructPix2Pix"), (5, "5 input and 4 output channels, but the VAE's latents have 4")],
)
def test_u_nets_with_other_inputs(channels: int, purpose: str, tmp_path: Path) -> None:
    pipe = base_pipeline(tmp_path / "tokenizers", in_channels=channels)
    pipe.save_pretrained(tmp_path / "folder")
    save_file(single(pipe), tmp_path / "file.safetensors")
    for source in (tmp_path / "folder", tmp_path / "file.safetensors"):
        options = {"config": tmp_path / "folder"} if source.is_file() else {}
        refused(source, purpose, "4", **options)


def test_inpainting_models(tmp_path: Path) -> None:
    """They are told by the first convolution, in folders and in single files, and stay inpainting models when saved."""
    pipe = base_pipeline(tmp_path / "tokenizers", in_channels=9)
    pipe.save_pretrained(tmp_path / "folder")
    save_file(single(pipe), tmp_path / "file.safetensors")
    kernels = []
    for source, options in {"folder": {}, "file.safetensors": {"config": tmp_path / "folder"}}.items():
        loaded = StableDiffusionXLInpaintPipeline.from_pretrained(tmp_path / source, progress=False, **options)
        saved = loaded.save_pretrained(tmp_path / f"saved-{source}")
        assert json.loads((saved / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLInpaintPipeline"
        assert open_source(tmp_path / source, **options).index["_class_name"] == "StableDiffusionXLInpaintPipeline"
        kernels.append(load_file(saved / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"])
        assert kernels[-1].shape[1] == 9
        assert torch.equal(kernels[-1], pipe.unet.conv_in.weight)
        with pytest.raises(DistrijaxError, match="load it with StableDiffusionXLInpaintPipeline"):
            StableDiffusionXLPipeline.from_pretrained(tmp_path / source, progress=False, **options)


@pytest.mark.parametrize(
    ("kind", "changes", "form"),
    [
        ("base", {}, ("base", {"in_channels": 4})),
        ("refiner", {}, ("refiner", {"in_channels": 4})),
        ("base", {"in_channels": 9}, ("base", {"in_channels": 9})),
        ("base", {"time_cond_proj_dim": 256}, ("base", {"in_channels": 4, "time_cond_proj_dim": 256})),  # LCM
        ("base", {"block_out_channels": [128, 640, 1280], "attention_head_dim": 4}, (None, {"in_channels": 4})),
    ],
)
def test_u_nets_are_recognised_by_their_shapes(kind: str, changes: dict[str, Any], form: Any) -> None:
    component = Component.from_json("unet", packaged(f"{kind}_unet") | changes, kind)
    state = {}
    for path, shape in component.shapes.items():
        name, axes = component.table().to_torch(path)
        state[name] = Tensor(tuple(shape[axis] for axis in axes), np.dtype(np.float16), lambda: np.zeros(0))
    assert recognise.published_form(state) == form
    guided = {name: state.pop(name) for name in list(state) if "cond_proj" in name}  # there is no original name for it
    original = ldm_unet(
        state, packaged(f"{kind}_unet")["down_block_types"], packaged(f"{kind}_unet")["up_block_types"], 2
    )
    assert guided or recognise.published_form(original) == form
    assert recognise.prefixes({f"model.diffusion_model.{name}": value for name, value in original.items()}) == {
        "unet": "model.diffusion_model."
    }
    for alone in (state, original):
        assert recognise.other_model(alone) is None
        assert "but a single U-Net: give a model, and this file as its unet" in recognise.missing("vae", alone)
