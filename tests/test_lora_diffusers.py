"""LoRA against the programs that write its files: diffusers with PEFT, and LyCORIS. Small checkpoints in fp32."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import every_layer, lora, weights
from helpers_checkpoint import SHALLOW, UNET, base_pipeline

from distrijax import StableDiffusionXLPipeline
from distrijax.checkpoint import Component

peft = pytest.importorskip("peft")
lycoris = pytest.importorskip("lycoris")

from diffusers import StableDiffusionXLPipeline as Theirs  # noqa: E402
from diffusers.utils import convert_state_dict_to_diffusers  # noqa: E402

PARTS = "unet", "text_encoder", "text_encoder_2"
# Both sum a few products in fp32, in another order.
TOLERANCE = 2e-6

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base_pipeline(path / "own", **SHALLOW).save_pretrained(path / "base")
    return path / "base"


@pytest.fixture
def theirs(folder: Path) -> Theirs:
    pipe = Theirs.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def loaded(folder: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, progress=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(loaded: StableDiffusionXLPipeline) -> Any:
    yield loaded
    loaded.unfuse_lora()
    loaded.unload_lora_weights()


@pytest.fixture(scope="module")
def base(loaded: StableDiffusionXLPipeline) -> Any:
    loaded.place_parts()
    return weights(loaded)


def dense(pipe: Theirs) -> dict[tuple[str, str], np.ndarray]:
    """Return the weights of diffusers' pipeline with its LoRAs, by component and current name."""
    pipe.fuse_lora(components=list(PARTS))
    found = {}
    for part in PARTS:
        table = Component.from_json(part, UNET if part == "unet" else getattr(pipe, part).config.to_dict(), "").table()
        for name, value in getattr(pipe, part).state_dict().items():
            if "lora_" not in name and "position_ids" not in name:
                entry = table.to_ours(name.replace(".base_layer", ""))
                assert entry is not None, name
                found[part, table.to_torch(entry.name).name] = value.detach().numpy()
    return found


def assert_same(ours: StableDiffusionXLPipeline, theirs: Theirs, base: Any, least: int = 5) -> None:
    reference = dense(theirs)
    ours.place_parts()
    changed = 0
    for key, array in weights(ours).items():
        assert np.abs(array - reference[key]).max() < TOLERANCE, key
        changed += not np.array_equal(array, base[key])
    assert changed >= least


def file_of(family: str, base: Any, alpha: float | None, seed: int = 0) -> dict[str, torch.Tensor]:
    state = {}
    for (part, layer), name, tensors, rank, rng in every_layer(family, base, seed):
        if layer == "text_projection" or (layer.startswith("add_embedding") and "diffusers" in family):
            continue  # diffusers 0.42 with transformers 5 loses the rank of the first, and the name of the second
        made, _ = lora(rng, base[part, f"{layer}.weight"].shape, rank)
        state |= {f"{name}.{tensors[what]}": torch.from_numpy(array) for what, array in made.items()}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


@pytest.mark.parametrize(
    ("family", "alpha"),
    [
        ("kohya", 2.0), ("kohya", None), ("kohya with diffusers' paths", 2.0), ("peft", None),
        ("diffusers 0.17", None), ("processors", None),
    ],
)  # fmt: skip
def test_families_that_diffusers_reads(ours: Any, theirs: Theirs, base: Any, family: str, alpha: float | None) -> None:
    state = file_of(family, base, alpha)
    theirs.load_lora_weights(dict(state))
    ours.load_lora_weights(state)
    assert_same(ours, theirs, base)


def test_which_are_active(ours: Any, theirs: Theirs, base: Any) -> None:
    files = {name: file_of("peft", base, None, seed) for seed, name in enumerate("abc")}
    files["b"] = {name: value for name, value in files["b"].items() if name.startswith("unet")}

    def same(*calls: Any) -> None:
        for pipe in (ours, theirs):
            for call in calls:
                call(pipe)
        assert sorted(ours.get_active_adapters()) == sorted(theirs.get_active_adapters())
        assert ours.get_list_adapters() == theirs.get_list_adapters()

    same(lambda pipe: pipe.load_lora_weights(dict(files["a"])))
    same(lambda pipe: pipe.load_lora_weights(dict(files["b"]), adapter_name="b"))
    same(lambda pipe: pipe.load_lora_weights(dict(files["c"]), adapter_name="c"))
    same(lambda pipe: pipe.set_adapters(["default_0", "b"], [0.5, -0.25]))
    same(lambda pipe: pipe.delete_adapters("default_0"))
    same(lambda pipe: pipe.delete_adapters(["b"]))
    same(lambda pipe: pipe.disable_lora(), lambda pipe: pipe.enable_lora())
    same(lambda pipe: pipe.set_adapters("c", 0.75))
    assert_same(ours, theirs, base)


@pytest.mark.parametrize(
    "weights_of",
    [
        0.3,
        {"text_encoder": 0.5, "unet": {"down": 0.2, "mid": 0.4, "up": {"block_0": [0.6, 0.8]}}},
        {"unet": {"up": 0.5}, "text_encoder_2": 0.1},
        {"unet": {"down": {"block_1": [0.7]}}},
    ],
)
def test_weights_by_block(ours: Any, theirs: Theirs, base: Any, weights_of: Any) -> None:
    state = file_of("peft", base, None)
    state = {k: v for k, v in state.items() if not k.startswith("unet.conv") and "embedding" not in k}  # it cannot
    for pipe in (ours, theirs):
        pipe.load_lora_weights(dict(state), adapter_name="a")
        pipe.set_adapters("a", weights_of)
    assert_same(ours, theirs, base)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_files_that_diffusers_writes(ours: Any, theirs: Theirs, base: Any, tmp_path: Path, options: Any) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_out.0", "conv1", "proj_in"], init_lora_weights=False,
        rank_pattern={"to_out.0": 2}, alpha_pattern={"conv1": 3}, **options,
    )  # fmt: skip
    theirs.unet.add_adapter(config, "a")
    generator = torch.Generator().manual_seed(0)
    for name, value in theirs.unet.named_parameters():
        if "magnitude" in name:
            value.data *= 1 + torch.rand(value.shape, generator=generator)
    layers = peft.get_peft_model_state_dict(theirs.unet, adapter_name="a")
    metadata = {name: getattr(config, name) for name in ("r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora")}
    Theirs.save_lora_weights(
        tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(layers), unet_lora_adapter_metadata=metadata
    )
    ours.load_lora_weights(tmp_path)
    assert_same(ours, theirs, base)


def test_pictures_with_a_scale(ours: Any, theirs: Theirs, base: Any) -> None:
    """1e-4 of the latents' length, as without LoRA: two steps of a random U-Net amplify rounding."""
    call = {"prompt": "red circle", "num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
    call["cross_attention_kwargs"] = {"scale": 0.6}
    made = []
    for pipe in (theirs, ours):
        for seed, name in enumerate("ab"):
            pipe.load_lora_weights(file_of("kohya", base, 2.0, seed), adapter_name=name)
        pipe.set_adapters(["a", "b"], [0.8, -0.5])
        generator = torch.Generator().manual_seed(0)
        made.append(np.asarray(pipe(**call, generator=generator).images))
    assert np.linalg.norm(made[0] - made[1]) < 1e-4 * np.linalg.norm(made[0])
    plain = np.asarray(ours(**call | {"cross_attention_kwargs": None}, generator=0).images)
    assert np.linalg.norm(plain - made[1]) > 1e-2 * np.linalg.norm(plain)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon"},
    "tucker": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha, tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr, whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr, two products": {"algo": "lokr", "factor": 4, "decompose_both": True, "use_tucker": True},
    "dora by rows": {"algo": "locon", "dora_wd": True},
    "dora by columns": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "lokr, dora": {"algo": "lokr", "factor": 4, "dora_wd": True},
    "whole": {"algo": "full", "train_norm": True},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_files_that_lycoris_writes(ours: Any, theirs: Theirs, base: Any, tmp_path: Path, algorithm: str) -> None:
    """The layers' outputs, since LyCORIS' own functions for merging scale some kinds twice."""
    unet = theirs.unet
    network = lycoris.create_lycoris(unet, 1.0, linear_dim=3, linear_alpha=2, conv_dim=2, **ALGORITHMS[algorithm])
    network.apply_to()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(value * (1 + 0.2 * noise.abs()) if "dora_scale" in name else value + 0.1 * noise)
    network.save_weights(str(tmp_path / "a.safetensors"), None, None)
    ours.load_lora_weights(tmp_path / "a.safetensors")
    ours.place_parts()
    merged, compared = weights(ours), 0
    for name, module in unet.named_modules():
        key = "unet", f"{name}.weight"
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d) or key not in merged or "lora" in name:
            continue
        size = (2, merged[key].shape[1], *[5] * (merged[key].ndim - 2))
        x, weight = torch.randn(size, generator=generator), torch.from_numpy(merged[key])
        own = merged.get(("unet", f"{name}.bias"))
        bias = None if own is None else torch.from_numpy(own)
        if isinstance(module, torch.nn.Conv2d):
            plain = torch.nn.functional.conv2d(x, weight, bias, module.stride, module.padding)
        else:
            plain = torch.nn.functional.linear(x, weight, bias)
        with torch.no_grad():
            assert torch.allclose(module(x), plain, atol=2e-5, rtol=1e-5), name
        compared += not np.array_equal(merged[key], base[key])
    assert compared > 20
