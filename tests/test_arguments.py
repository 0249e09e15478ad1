"""Every argument of every public function against wrong values of every kind: each is refused by its name."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from helpers_checkpoint import SHALLOW, UNET, VAE
from PIL import Image
from test_pipeline import write_pipeline

import distrijax
from distrijax import (
    DistrijaxError,
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from distrijax.checkpoint import convert
from distrijax.checks import array_of
from distrijax.pipelines import image_to_image, inpaint, text_to_image

KEY = jax.random.key(0)
NOT_NUMBERS = ["1", [1], {}, 1j, True, np.True_, object(), KEY, np.array([1.0, 2.0]), float("nan"), np.float32("inf")]
NOT_WHOLE = [*NOT_NUMBERS, 1.5, np.float32(2), jnp.float32(2), -(10**30)]
NOT_LISTS = [5, "abc", ["a"], [1, None], [[1], [1, 2]], object(), KEY, [float("nan"), 1]]
NOT_STRINGS = [5, 1.5, True, b"x", object(), KEY, {"a": 1}]
WRONG: dict[str, list[Any]] = {
    "whole": NOT_WHOLE,
    "count": [*NOT_WHOLE, 0, -1],
    "number": NOT_NUMBERS,
    "part": [*NOT_NUMBERS, -0.1, 1.1, np.float32(3)],
    "flag": [0, 1, "yes", [], KEY, np.array([True])],
    "text": [*NOT_STRINGS, ("a",), ["a", 1], [["a"]], [None]],
    "name": [*NOT_STRINGS, "nothing", ["pil"], np.array(["pil", "np"])],
    "path": [5, 1.5, True, object(), ["a"], KEY],
    "word": [5, 1.5, True, object(), ["a"]],
    "numbers": [*NOT_LISTS, [], [1, 2]],  # rising
    "pair": [*NOT_LISTS, [], [1], (1, 2, 3), np.zeros((1, 2))],
    "array": [5, "abc", object(), KEY, [[1], [1, 2]], np.zeros((3, 3)), np.full((1, 4, 8, 8), np.nan), torch.zeros(2)],
    "seed": ["7", True, 1.5, np.float32(2), object(), KEY, [1.5], ["a"], [KEY], 2**64, -(2**63) - 1, {}],
    "generator": ["7", True, 1.5, np.float32(2), object(), KEY, [1.5], ["a"], 2**64, {}],
    "image": [5, "photo.png", object(), [], [None], np.zeros(3), np.full((8, 8, 3), np.nan), KEY],
    "scale": [5, "x", {"scale": "x"}, {"scale": float("nan")}, {"other": 1}, KEY, np.array([1, 2])],
    "names": [5, 1.5, True, object(), [1], {"a": 1}, KEY, b"a"],
    "tensors": [5, 1.5, True, object(), ["a"], KEY, {"a": "b"}, {5: np.zeros(2)}, {"a": None}],
    "weights": [*NOT_NUMBERS[:1], True, float("nan"), {"vae": 1}, {"down": "x"}, {"mid": [1, 2]}, [1, 2], [None, 1]],
    "module": [5, object(), KEY, np.zeros(3)],
    "dtype": [5, "float", "int8", "torch.int8", torch.int8, jnp.int32, object(), KEY],
    "devices": [5, "cpu", [], [1], jax.devices()[:1] * 2, KEY],
    "mapping": [5, "x", [1], KEY, object()],
}
RIGHT: dict[str, list[Any]] = {
    "whole": [2, np.int64(2), np.uint8(2), jnp.int32(2), np.array(2), torch.tensor(2)],
    "number": [2, 0.5, np.float32(0.5), np.int64(2), jnp.float32(0.5), jnp.bfloat16(0.5), np.array(0.5)],
    "part": [0, 1, 0.5, np.float32(0.5), jnp.float32(0.5), ml_dtypes.bfloat16(0.5), torch.tensor(0.5)],
}
RIGHT["count"] = RIGHT["whole"]

TEXTS = dict.fromkeys(["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"], "text")
EMBEDS = dict.fromkeys(
    ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"], "array"
)
SIZES = ["original_size", "crops_coords_top_left", "target_size"]
SIZES += [f"negative_{size}" for size in SIZES]
CALL = TEXTS | EMBEDS | dict.fromkeys(SIZES, "pair")
CALL |= dict.fromkeys(["num_inference_steps", "num_images_per_prompt"], "count")
CALL |= dict.fromkeys(["guidance_scale", "aesthetic_score", "negative_aesthetic_score"], "number")
CALL |= dict.fromkeys(["timesteps", "sigmas"], "numbers") | {"eta": "number", "guidance_rescale": "part"}
CALL |= {"denoising_end": "part", "generator": "generator", "latents": "array", "output_type": "name"}
CALL |= {"return_dict": "flag", "cross_attention_kwargs": "scale", "clip_skip": "whole", "seed": "seed"}
CALL |= {"noise": "name", "prompt_syntax": "name"}
REFINER = {"refiner": "module", "switch_at": "part", "offload": "flag"}
# A function that runs after each step is tried where it is called.
ELSEWHERE = {"callback_on_step_end", "callback_on_step_end_tensor_inputs"}

PARTS = dict.fromkeys(["unet", "vae", "text_encoder", "text_encoder_2"], "module")
LOAD = {"source": "path", "dtype": "dtype", "torch_dtype": "dtype", "parallel": "module", "progress": "flag"}
LOAD |= {"preview": "module", "variant": "word", "config": "path", "tokenizer": "path", "scheduler": "module"} | PARTS
BUILT = PARTS | dict.fromkeys(["tokenizer", "tokenizer_2", "scheduler", "parallel", "preview"], "module")
CONVERT = {"source": "path", "target": "path", "dtype": "dtype", "overwrite": "flag", "progress": "flag"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arguments") / "base"
    write_pipeline(path, unet=UNET | SHALLOW, vae=VAE)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder, progress=False)


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call ends where the work would begin, and returns its checked arguments."""
    for module in (text_to_image, image_to_image, inpaint):
        monkeypatch.setattr(module, "make_pictures", lambda pipe, call, *start, **options: call)


def parameters(function: Callable[..., Any]) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD} - {"self"}


def refused(function: Callable[..., Any], kinds: dict[str, str], **fixed: Any) -> None:
    """Check that each wrong value of each argument raises an error that names the argument."""
    missed = []
    for name, value in ((name, value) for name, kind in kinds.items() for value in WRONG[kind]):
        try:
            function(**fixed | {name: value})
            missed.append(f"{name}={value!r} was taken")
        except DistrijaxError as error:
            if name.removeprefix("torch_") not in str(error):
                missed.append(f"{name}={value!r}: {error}")
        except Exception as error:
            missed.append(f"{name}={value!r}: {type(error).__name__}: {error}")
    assert not missed, "\n".join(missed)


def taken(function: Callable[..., Any], kinds: dict[str, str], **fixed: Any) -> None:
    for name, value in ((name, value) for name, kind in kinds.items() for value in RIGHT.get(kind, [])):
        function(**fixed | {name: value})


def test_text_to_image(pipe: StableDiffusionXLPipeline) -> None:
    kinds = CALL | REFINER | {"height": "count", "width": "count"}
    assert set(kinds) == parameters(StableDiffusionXLPipeline.__call__) - ELSEWHERE
    embeds = {"prompt_embeds": None, "prompt": "a"}
    refused(pipe, kinds, **embeds)
    right = {
        name: kind for name, kind in kinds.items() if name not in ("height", "width", "denoising_end", "switch_at")
    }
    taken(pipe, right, prompt="a")
    for size in (64, np.int64(64), jnp.int32(64)):
        assert pipe("a", height=size, denoising_end=np.float32(0.5)).shape[2] == 64 // pipe.vae_scale_factor


def test_image_to_image(pipe: StableDiffusionXLPipeline) -> None:
    kinds = CALL | REFINER | {"image": "image", "strength": "part", "denoising_start": "part"}
    assert set(kinds) == parameters(StableDiffusionXLImg2ImgPipeline.__call__) - ELSEWHERE
    other = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    refused(other, kinds, prompt="a", image=Image.new("RGB", (64, 64)))


def test_inpainting(pipe: StableDiffusionXLPipeline) -> None:
    kinds = CALL | {"image": "image", "mask_image": "image", "strength": "part", "denoising_start": "part"}
    kinds |= {"height": "count", "width": "count", "padding_mask_crop": "whole", "masked_image_latents": "array"}
    assert set(kinds) == parameters(StableDiffusionXLInpaintPipeline.__call__) - ELSEWHERE
    other = StableDiffusionXLInpaintPipeline.from_pipe(pipe)
    refused(other, kinds, prompt="a", image=Image.new("RGB", (64, 64)), mask_image=Image.new("L", (64, 64), 255))


def test_numbers_are_pythons_own(pipe: StableDiffusionXLPipeline) -> None:
    call: Any = pipe("a", seed=np.int64(5), guidance_scale=jnp.float32(4), num_images_per_prompt=np.int64(2))
    assert (type(call.seed), type(call.guidance_scale), type(call.shape[0])) == (int, float, int)
    call = pipe(["a", "b"], seed=np.array([5, 6]))
    assert call.seed == [5, 6]


def test_tensors_of_torch_are_arrays() -> None:
    """In bfloat16, which NumPy lacks, and with a gradient, too; whole numbers stay whole."""
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(array_of("x", tensor), np.ones((2, 3), np.float32))
    assert array_of("x", torch.ones(2, dtype=torch.uint8)).dtype == np.uint8
    assert array_of("x", jnp.ones(2, jnp.bfloat16)).shape == (2,)


def test_encode_prompt(pipe: StableDiffusionXLPipeline) -> None:
    kinds = TEXTS | EMBEDS | {"num_images_per_prompt": "count", "clip_skip": "whole", "lora_scale": "number"}
    kinds |= {"do_classifier_free_guidance": "flag", "prompt_syntax": "name"}
    assert set(kinds) == parameters(StableDiffusionXLPipeline.encode_prompt) - {"device"}
    refused(pipe.encode_prompt, kinds, prompt="a")


def test_adapters(pipe: StableDiffusionXLPipeline) -> None:
    load = {"source": "tensors", "adapter_name": "word", "weight_name": "word", "subfolder": "word", "hotswap": "flag"}
    assert set(load) == parameters(pipe.load_lora_weights)
    refused(pipe.load_lora_weights, load, source={}, adapter_name="a")
    layer = "unet.mid_block.attentions.0.proj_in"
    pipe.load_lora_weights({f"{layer}.lora_{x}.weight": np.ones(s) for x, s in (("A", (1, 64)), ("B", (64, 1)))}, "a")
    refused(pipe.set_adapters, {"adapter_names": "names"})
    refused(pipe.set_adapters, {"adapter_weights": "weights"}, adapter_names="a")
    refused(pipe.delete_adapters, {"adapter_names": "names"})
    fuse = {"components": "names", "lora_scale": "number", "safe_fusing": "flag", "adapter_names": "names"}
    assert set(fuse) == parameters(pipe.fuse_lora)
    refused(pipe.fuse_lora, fuse)
    refused(pipe.unfuse_lora, {"components": "names"})
    taken(pipe.fuse_lora, {"lora_scale": "number"})
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


@pytest.mark.parametrize("loader", ["from_pretrained", "from_single_file"])
def test_loading(folder: Path, loader: str) -> None:
    kinds, fixed = dict(LOAD), {"source": folder, "progress": False}
    if loader == "from_single_file":
        kinds["file"], fixed = kinds.pop("source"), {"file": folder / "unet" / "config.json", "progress": False}
        kinds = {"file": "path"}
    refused(getattr(StableDiffusionXLPipeline, loader), kinds, **fixed)


def test_parts(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    refused(StableDiffusionXLPipeline, BUILT, **pipe.components)
    refused(StableDiffusionXLPipeline.from_pipe, {"pipe": "module"})
    refused(pipe.save_pretrained, {"folder": "path", "variant": "word", "overwrite": "flag"}, folder=tmp_path / "a")
    with pytest.raises(DistrijaxError, match=r"scheduler is 'ddim'; .* DDIMScheduler.from_config\(pipe.scheduler"):
        pipe.scheduler = "ddim"  # type: ignore[assignment]
    assert pipe.scheduler.class_name == "EulerDiscreteScheduler"


def test_converting(folder: Path, tmp_path: Path) -> None:
    kinds = CONVERT | {"to": "name", "target_variant": "word"}
    assert set(kinds) == parameters(convert)
    refused(convert, kinds, source=folder, target=tmp_path / "converted", progress=False)


def test_parallel() -> None:
    kinds = dict.fromkeys(["data", "cfg", "patch"], "count") | {"warmup_steps": "whole", "mode": "name"}
    kinds |= {"max_waiting": "part"}
    kinds |= {"emulate": "flag", "devices": "devices"}
    assert set(kinds) == parameters(Parallel)
    refused(Parallel, kinds)
    taken(Parallel, kinds)
    assert (
        hash(Parallel(patch=jnp.int32(2), devices=jax.devices()[:2]))
        == hash(  # type: ignore[arg-type]
            Parallel(patch=2, devices=tuple(jax.devices()[:2]))
        )
    )
    kinds = {"guided": "flag", "pictures": "count", "devices": "devices"}
    assert set(kinds) == parameters(Parallel.auto)
    refused(Parallel.auto, kinds)


def options() -> Iterator[tuple[type, dict[str, str]]]:
    """Yield the schedulers and what kind each option is, by its default."""
    for name in distrijax.__all__:
        kind = getattr(distrijax, name)
        if inspect.isclass(kind) and hasattr(kind, "schedule"):
            kinds = {}
            for option, parameter in inspect.signature(kind).parameters.items():
                by_default = {bool: "flag", int: "whole", float: "number", str: "name"}
                kinds[option] = by_default.get(type(parameter.default), "number")
            others = ("origin", "trained_betas", "disable_corrector")
            yield kind, {option: value for option, value in kinds.items() if option not in others}


@pytest.mark.parametrize(("scheduler", "kinds"), list(options()), ids=lambda x: getattr(x, "__name__", ""))
def test_schedulers(scheduler: Any, kinds: dict[str, str]) -> None:
    refused(scheduler, kinds)
    steps = {"num_inference_steps": "count", "timesteps": "numbers", "sigmas": "numbers", "eta": "number"}
    steps |= {"start": "whole"}
    assert set(steps) == parameters(scheduler.schedule)
    made = scheduler(**{"skip_prk_steps": True} if "skip_prk_steps" in kinds else {})
    for name in steps:
        fixed = {"num_inference_steps": 3} if name in ("eta", "start") else {}
        refused(made.schedule, {name: steps[name]}, **fixed)
    taken(made.schedule, {"num_inference_steps": "whole"})
    refused(scheduler.from_config, {"config": "mapping"})
    refused(distrijax.scheduler_from_config, {"config": "mapping", "name": "name"}, config={}, name="ddim")
