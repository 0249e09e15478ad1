"""Parts of a checkpoint as objects or from elsewhere, and models in memory written as a diffusers folder."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from flax import nnx
from helpers_checkpoint import UNET, assert_same_states, base_pipeline, refiner_pipeline
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file
from test_single_file import ldm_unet, single

import distrijax
from distrijax.checkpoint import Parts, component, convert, export, load, open_source, save_diffusers
from distrijax.config import UNetConfig
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.schedulers import DDIMScheduler

NAMES = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints, `base` and `other`, in every form: `base`, `base-converted`, `base-file`."""
    folder, forms = tmp_path_factory.mktemp("sources"), {}
    for name, offset in (("base", 0.0), ("other", 1.0)):
        pipe = base_pipeline(folder / f"{name}-tokenizers")
        for part in NAMES:
            for value in getattr(pipe, part).parameters():
                value.data += offset
        pipe.save_pretrained(folder / name)
        save_file(single(pipe), folder / f"{name}.safetensors")
        forms |= {name: folder / name, f"{name}-file": folder / f"{name}.safetensors"}
        forms[f"{name}-converted"] = convert(folder / name, folder / f"{name}-converted", progress=False)
    return forms


@pytest.fixture(scope="module")
def base(sources: dict[str, Path]) -> Parts:
    return load(sources["base"], progress=False)


@pytest.fixture(scope="module")
def other(sources: dict[str, Path]) -> Parts:
    return load(sources["other"], progress=False)


def same(one: nnx.Module, two: nnx.Module) -> bool:
    leaves = [jax.tree.leaves(nnx.state(module)) for module in (one, two)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))


def refused(source: Any, message: str, **options: Any) -> None:
    with pytest.raises(DistrijaxError) as caught:
        open_source(source, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("form", ["base", "base-converted", "base-file"])
def test_objects_are_used_as_they_are(form: str, sources: dict[str, Path], base: Parts, other: Parts) -> None:
    scheduler = DDIMScheduler()
    config = {"config": sources["base"]} if form == "base-file" else {}
    parts = load(
        sources[form],
        unet=other.unet,
        text_encoder_2=other.text_encoder_2,
        scheduler=scheduler,
        progress=False,
        **config,
    )
    assert parts.unet is other.unet
    assert parts.text_encoder_2 is other.text_encoder_2
    assert parts.scheduler is scheduler
    assert same(parts.vae, base.vae)
    assert same(parts.text_encoder, base.text_encoder)


def test_what_is_given_as_an_object_is_not_read(sources: dict[str, Path], other: Parts, tmp_path: Path) -> None:
    folder = shutil.copytree(sources["base"], tmp_path / "base")
    objects = {name: getattr(other, name) for name in (*NAMES, "scheduler")}
    index = json.loads((folder / "model_index.json").read_text())
    for name in objects:
        shutil.rmtree(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderTiny"]}))
    parts = load(folder, **objects, progress=False)
    assert all(getattr(parts, name) is objects[name] for name in objects)
    stored = shutil.copytree(sources["base-converted"], tmp_path / "converted")
    shutil.rmtree(stored / "unet")
    refused(stored, "is damaged")
    exported = export(folder, tmp_path / "exported", **objects, progress=False)
    assert json.loads((exported / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    assert load(stored, unet=other.unet, progress=False).unet is other.unet


def test_parts_from_paths(sources: dict[str, Path], base: Parts, other: Parts) -> None:
    """Each form of a whole checkpoint, or the component's own folder."""
    for name in NAMES:
        places = [sources["other"], sources["other"] / name, sources["other-converted"]]
        for place in places:
            parts = load(sources["base"], **{name: place}, progress=False)
            for part in NAMES:
                assert same(getattr(parts, part), getattr(other if part == name else base, part)), (part, place)
        parts = load(sources["base"], **{name: sources["other-file"]}, config=sources["other"], progress=False)
        assert same(getattr(parts, name), getattr(other, name))
        assert not same(getattr(parts, name), getattr(base, name))


def test_files_with_the_u_net_only(sources: dict[str, Path], other: Parts, tmp_path: Path) -> None:
    """Under the original names, with and without their prefix, and under diffusers'."""
    state = load_file(sources["other"] / "unet" / "diffusion_pytorch_model.safetensors")
    original = ldm_unet(state, UNET["down_block_types"], UNET["up_block_types"], UNET["layers_per_block"])
    prefix = "model.diffusion_model."
    (tmp_path / "beside").mkdir()
    shutil.copy(sources["other"] / "unet" / "config.json", tmp_path / "beside")
    for number, layout in enumerate((original, {prefix + key: value for key, value in original.items()}, state)):
        for folder, options in ((tmp_path, {"config": sources["other"]}), (tmp_path / "beside", {})):
            file = folder / f"{number}.safetensors"
            save_file(layout, file)
            assert same(load(sources["base"], unet=file, progress=False, **options).unet, other.unet)
        refused(sources["base"], "neither SDXL base nor refiner by its shapes", unet=tmp_path / f"{number}.safetensors")
    refused(sources["base"], "holds no unet", unet=sources["other"] / "vae" / "diffusion_pytorch_model.safetensors")


def test_text_encoder_files(sources: dict[str, Path], other: Parts) -> None:
    for name in ("text_encoder", "text_encoder_2"):
        file = sources["other"] / name / "model.safetensors"  # its config.json lies beside it
        assert same(getattr(load(sources["base"], **{name: file}, progress=False), name), getattr(other, name))


def test_schedulers_from_paths(sources: dict[str, Path], tmp_path: Path) -> None:
    for number, source in enumerate((sources["other"], sources["other"] / "scheduler")):
        file = source / ("scheduler/" * (1 - number)) / "scheduler_config.json"
        values = json.loads(file.read_text()) | {"beta_end": 0.5}
        folder = tmp_path / str(number) / ("scheduler" if number else "")
        folder.mkdir(parents=True)
        (folder / "scheduler_config.json").write_text(json.dumps(values))
        for place in (tmp_path / str(number), folder / "scheduler_config.json"):
            assert load(sources["base"], scheduler=place, progress=False).scheduler.beta_end == 0.5


def test_refusals(sources: dict[str, Path], other: Parts, tmp_path: Path) -> None:
    base = sources["base"]
    refused(base, "unet is a VAE; it must be a UNet, or a path or hub id of one", unet=other.vae)
    refused(base, "vae is a int", vae=3)
    refused(base, "scheduler is a dict", scheduler={})
    refused(base, "there is no option 'torch_dtype' for a checkpoint", torch_dtype="float16")
    refused(
        base,
        "_class_name is 'AutoencoderKL', which is not supported; it must be 'UNet2DConditionModel'",
        unet=sources["other"] / "vae",
    )
    refused(base, "there is no such file or folder", text_encoder=tmp_path / "nowhere")
    pipe = refiner_pipeline(tmp_path / "tokenizers")
    pipe.save_pretrained(tmp_path / "refiner")
    refused(tmp_path / "refiner", "is a model without text_encoder", text_encoder=other.text_encoder)
    with pytest.raises(DistrijaxError, match="folders and hub ids are for from_pretrained"):
        distrijax.StableDiffusionXLPipeline.from_single_file(base)


def test_converted_and_exported_with_parts_from_elsewhere(
    sources: dict[str, Path], other: Parts, tmp_path: Path
) -> None:
    options = {"unet": other.unet, "text_encoder_2": sources["other"], "scheduler": DDIMScheduler()}
    converted = convert(sources["base"], tmp_path / "converted", progress=False, **options)
    back = export(converted, tmp_path / "back", progress=False)
    for folder in (back, export(sources["base"], tmp_path / "straight", progress=False, **options)):
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
        theirs = StableDiffusionXLPipeline.from_pretrained(sources["other"], low_cpu_mem_usage=False)
        assert type(pipe.scheduler).__name__ == "DDIMScheduler"
        for name in ("unet", "text_encoder_2"):
            ours, expected = getattr(pipe, name).state_dict(), getattr(theirs, name).state_dict()
            assert all(torch.equal(ours[key], expected[key]) for key in expected)
    with pytest.raises(DistrijaxError, match="overlaps"):
        convert(sources["base"], sources["other"], unet=sources["other"], overwrite=True, progress=False)


# ------------------------------------------------------------------------------------------------ models in memory


def diffusers_load(folder: Path, kind: Any = StableDiffusionXLPipeline, **options: Any) -> Any:
    return kind.from_pretrained(folder, add_watermarker=False, low_cpu_mem_usage=False, **options)


def test_saved_models_are_those_that_diffusers_loads(sources: dict[str, Path], base: Parts, tmp_path: Path) -> None:
    """Weights bit for bit; and the files of a checkpoint that was saved and loaded say what the original says."""
    saved = save_diffusers(tmp_path / "saved", base)
    ours, theirs = diffusers_load(saved), diffusers_load(sources["base"])
    assert_same_states(ours, theirs)
    for name in ("unet", "vae"):
        one, two = dict(getattr(ours, name).config), dict(getattr(theirs, name).config)
        differing = {key for key in {*one, *two} if list_or(one.get(key)) != list_or(two.get(key))}
        # `layers_per_block` is one number there and a list here.
        assert {key for key in differing if not key.startswith("_")} <= {"layers_per_block"}
    assert dict(ours.scheduler.config)["beta_end"] == theirs.scheduler.config.beta_end
    for name in ("tokenizer", "tokenizer_2"):
        assert getattr(ours, name)("a red circle").input_ids == getattr(theirs, name)("a red circle").input_ids
    again = load(saved, progress=False)
    assert all(same(getattr(again, name), getattr(base, name)) for name in NAMES)
    assert all(getattr(again, name).config == getattr(base, name).config for name in NAMES)
    assert (again.tokenizer, again.tokenizer_2) == (base.tokenizer, base.tokenizer_2)
    assert again.scheduler.config == base.scheduler.config
    assert again.index["force_zeros_for_empty_prompt"] is True


def list_or(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def test_spread_and_cast_weights_are_saved(sources: dict[str, Path], base: Parts, tmp_path: Path) -> None:
    """Weights of which each device holds a part or a copy, in bfloat16, under a variant's name."""
    mesh = Parallel(patch=8).mesh
    copies = load(sources["base"], dtype=jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()), progress=False)
    graph, state = nnx.split(copies.unet)

    def spread(leaf: jax.Array) -> jax.Array:
        divides = leaf.shape[0] % 8 == 0
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("patch" if divides else None)))

    parts = dataclasses.replace(copies, unet=nnx.merge(graph, jax.tree.map(spread, state)))
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(nnx.state(parts.unet)))
    saved = save_diffusers(tmp_path / "saved", parts, variant="half")
    theirs = diffusers_load(sources["base"], torch_dtype=torch.bfloat16)
    assert_same_states(diffusers_load(saved, torch_dtype=torch.bfloat16, variant="half"), theirs)
    cast = save_diffusers(tmp_path / "cast", base, dtype=jnp.bfloat16)
    assert_same_states(diffusers_load(cast, torch_dtype=torch.bfloat16), theirs)


def test_a_refiner_is_saved(tmp_path: Path) -> None:
    pipe = refiner_pipeline(tmp_path / "tokenizers")
    pipe.save_pretrained(tmp_path / "refiner")
    parts = load(tmp_path / "refiner", progress=False)
    flags = {name: parts.index[name] for name in ("requires_aesthetics_score", "force_zeros_for_empty_prompt")}
    saved = save_diffusers(tmp_path / "saved", dataclasses.replace(parts, index=flags))
    back = diffusers_load(saved, StableDiffusionXLImg2ImgPipeline)
    assert_same_states(back, pipe)
    assert back.text_encoder is None
    assert back.config.requires_aesthetics_score is True


def test_saving_is_all_or_nothing(base: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def failing(array: np.ndarray, *_: Any) -> np.ndarray:
        nonlocal count
        if (count := count + 1) == 100:
            raise OSError(28, "No space left on device")
        return np.ascontiguousarray(array)

    monkeypatch.setattr(component, "cast", failing)
    with pytest.raises(DistrijaxError, match="No space left"):
        save_diffusers(tmp_path / "saved", base)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    save_diffusers(tmp_path / "saved", base)
    with pytest.raises(DistrijaxError, match="already exists"):
        save_diffusers(tmp_path / "saved", base)
    save_diffusers(tmp_path / "saved", base, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_linear_projection": False, "time_cond_proj_dim": 16, "layers_per_block": [1, 2], "in_channels": 9},
        {
            "layers_per_block": [1, 2],
            "transformer_layers_per_block": [0, [1, 2]],
            "reverse_transformer_layers_per_block": [[2, 1, 1], [1, 2]],
        },
        {"mid_block_type": None},
    ],
)
def test_u_net_configurations_there_and_back(change: dict[str, Any]) -> None:
    config = UNetConfig.from_json({**UNET, **change})
    values = json.loads(json.dumps(config.to_json()))
    assert UNetConfig.from_json(values) == config
    with torch.device("meta"):
        ours = UNet2DConditionModel.from_config(values).state_dict()
        theirs = UNet2DConditionModel(**{**UNET, **change}).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
