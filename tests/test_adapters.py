"""LoRA and its relatives on a small pipeline, against dense formulas: names, kinds, scales, merging, errors."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_adapters import FAMILIES, every_layer, kohya_file, lora, tensors_of, weights
from parallel_helpers import small_pipeline
from safetensors.numpy import save_file

from distrijax import DistrijaxError, Parallel, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

CONV = "up_blocks.1.resnets.1.conv1"
LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
PROJECTION = "down_blocks.1.attentions.0.proj_in"  # a 1x1 convolution
STRIDED = "down_blocks.0.downsamplers.0.conv"


def fresh() -> StableDiffusionXLPipeline:
    """Return a pipeline that no other test has."""
    pipe: StableDiffusionXLPipeline = small_pipeline.__wrapped__()
    return pipe


@pytest.fixture(scope="module")
def whole() -> StableDiffusionXLPipeline:
    return fresh()


@pytest.fixture
def pipe(whole: StableDiffusionXLPipeline) -> Any:
    whole.parallel = Parallel()
    yield whole
    whole.unfuse_lora()
    whole.unload_lora_weights()
    whole.place_parts()


@pytest.fixture(scope="module")
def base(whole: StableDiffusionXLPipeline) -> dict[tuple[str, str], np.ndarray]:
    whole.place_parts()
    return weights(whole)


def merged(pipe: StableDiffusionXLPipeline, **options: Any) -> dict[tuple[str, str], np.ndarray]:
    pipe.place_parts(**options)
    return weights(pipe)


def check(pipe: Any, base: Any, changes: dict[Any, Any], scale: float = 1.0, tolerance: float = 2e-6) -> None:
    """Weights are 1e-6 of exact: fp32 sums of a few products of a tenth; those without a change are the same bits."""
    for key, array in merged(pipe).items():
        if key in changes:
            difference = np.abs(array - (base[key] + scale * changes[key])).max()
            assert difference < tolerance * max(1, np.abs(changes[key]).max()), (key, difference)
            assert not np.array_equal(array, base[key]), key
        else:
            assert np.array_equal(array, base[key]), key


def compiled(pipe: StableDiffusionXLPipeline) -> int:
    return sum(program.compiled for program in pipe.programs.merge.all)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_names(pipe: Any, base: Any, family: str) -> None:
    state, changes = {}, {}
    for (part, layer), name, tensors, rank, rng in every_layer(family, base):
        made, change = lora(rng, base[part, f"{layer}.weight"].shape, rank)
        state |= {f"{name}.{tensors[what]}": array for what, array in made.items()}
        changes[part, f"{layer}.weight"] = change
    assert len(changes) >= 4
    pipe.load_lora_weights(state)
    check(pipe, base, changes)


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        (None, 1), (np.float32(0), 1), (np.float32(4), 1), (np.float32(2), 0.5), (np.array([2], np.float16), 0.5),
        (np.array(2, ml_dtypes.bfloat16), 0.5), (np.array(8, np.int64), 2),
    ],
)  # fmt: skip
def test_alpha(pipe: Any, base: Any, alpha: Any, scale: float) -> None:
    made, change = lora(np.random.default_rng(0), base["unet", f"{LINEAR}.weight"].shape, 4)
    state = {f"unet.{LINEAR}.lora_A.weight": made["down"], f"unet.{LINEAR}.lora_B.weight": made["up"]}
    if alpha is not None:
        state[f"unet.{LINEAR}.alpha"] = np.asarray(alpha)
    pipe.load_lora_weights(state)
    check(pipe, base, {("unet", f"{LINEAR}.weight"): change}, scale)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (CONV, "tucker"), (STRIDED, "tucker"), (LINEAR, "loha"), (CONV, "loha"), (CONV, "loha tucker"),
        (LINEAR, "lokr w1 w2"), (LINEAR, "lokr w1"), (LINEAR, "lokr"), (LINEAR, "lokr w2"), (PROJECTION, "lokr w1"),
        (CONV, "lokr w1 tucker"), (CONV, "lokr w1"), (CONV, "lokr w1 w2"), (PROJECTION, "loha"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("norms", [None, "rows", "columns"])
def test_kinds(pipe: Any, base: Any, layer: str, kind: str, norms: str | None) -> None:
    key, rng, rank = ("unet", f"{layer}.weight"), np.random.default_rng(1), 3
    weight = base[key].astype(float)
    tensors, change = tensors_of(rng, kind, weight.shape, rank)
    number = rank + 1 if kind == "tucker" else rank  # the rank that `up` has
    change = change * (1 if kind == "lokr w1 w2" else 2 / number)
    tensors["alpha"] = np.float32(2)
    if norms is not None:
        axis = 0 if norms == "rows" else 1
        others = tuple(i for i in range(weight.ndim) if i != axis)
        changed = weight + change
        magnitude = rng.uniform(0.5, 2, [n if i == axis else 1 for i, n in enumerate(weight.shape)])
        tensors["dora_scale"] = magnitude.astype(np.float32)
        norm = np.sqrt((changed**2).sum(others, keepdims=True))
        change = magnitude * changed / norm - weight
    prefix = f"lora_unet_{layer.replace('.', '_')}"
    pipe.load_lora_weights({f"{prefix}.{name}": array for name, array in tensors.items()}, "it")
    for scale in 1.0, -0.5:
        pipe.set_adapters("it", scale)
        check(pipe, base, {key: change}, scale, 1e-5)


def test_whole_differences_norms_and_biases(pipe: Any, base: Any) -> None:
    rng, state, changes = np.random.default_rng(2), {}, {}
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    for layer, leaf, name in (
        (CONV, "weight", "diff"),
        (CONV, "bias", "diff_b"),
        (LINEAR, "weight", "diff"),
        (f"{block}.norm1", "weight", "w_norm"),
        (f"{block}.norm1", "bias", "b_norm"),
        ("conv_norm_out", "weight", "diff"),
        ("conv_norm_out", "bias", "diff_b"),
    ):
        key = "unet", f"{layer}.{leaf}"
        changes[key] = rng.standard_normal(base[key].shape).astype(np.float16)
        state[f"lora_unet_{layer.replace('.', '_')}.{name}"] = changes[key]
    pipe.load_lora_weights(state, "it")
    pipe.set_adapters("it", 0.25)
    check(pipe, base, {key: value.astype(float) for key, value in changes.items()}, 0.25)


def test_rank_stabilised_patterns_and_biases_of_peft(pipe: Any, base: Any, tmp_path: Path) -> None:
    """PEFT's folders have a configuration, diffusers stores it in the header."""
    state, changes, shapes = {}, {}, {LINEAR: 4, CONV: 2}
    for layer, rank in shapes.items():
        key = "unet", f"{layer}.weight"
        made, change = lora(np.random.default_rng(3), base[key].shape, rank)
        state |= {f"{layer}.lora_A.weight": made["down"], f"{layer}.lora_B.weight": made["up"]}
        changes[key] = change * (6 if layer == CONV else 8) / np.sqrt(rank)
    bias = np.ones(base["unet", f"{CONV}.bias"].shape, np.float32)
    state[f"{CONV}.lora_B.bias"], changes["unet", f"{CONV}.bias"] = bias, bias * 6 / np.sqrt(2)
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"resnets.1.conv1": 6}, "use_rslora": True}
    (tmp_path / "folder").mkdir()
    save_file({f"base_model.model.{k}": v for k, v in state.items()}, tmp_path / "folder/adapter_model.safetensors")
    (tmp_path / "folder/adapter_config.json").write_text(json.dumps(config))
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    save_file({f"unet.{k}": v for k, v in state.items()}, tmp_path / "header.safetensors", header)
    for source in tmp_path / "folder", tmp_path / "header.safetensors":
        pipe.load_lora_weights(source, source.name)
        assert pipe.get_active_adapters() == [source.name]
        check(pipe, base, changes)


def test_weights_come_back_and_swapping_compiles_nothing(pipe: Any, base: Any) -> None:
    before = {name: [np.asarray(x) for x in w.arrays] for name, w in pipe.place_parts().items()}
    files = {name: kohya_file(base, rank, seed) for seed, (name, rank) in enumerate({"a": 4, "b": 40, "c": 1}.items())}
    programs = 0
    for name, (state, changes) in files.items():
        pipe.load_lora_weights(state, name)
        check(pipe, base, changes)
        programs = compiled(pipe) if name == "a" else programs
        assert compiled(pipe) == programs, "another rank compiles"
    pipe.set_adapters(["a", "b"], [0.3, -0.5])
    check(pipe, base, {key: 0.3 * files["a"][1][key] - 0.5 * files["b"][1][key] for key in files["a"][1]})
    pipe.set_adapters(["c", "a"], [0.0, 0.0])
    after = {name: [np.asarray(x) for x in w.arrays] for name, w in pipe.place_parts().items()}
    for name, arrays in before.items():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, after[name], strict=True)), name
    assert compiled(pipe) == programs
    assert pipe.get_list_adapters() == {part: ["a", "b", "c"] for part in ("unet", "text_encoder", "text_encoder_2")}


def test_one_rounding_in_half_precision(base: Any) -> None:
    """Two adapters with weights round once: weights are the bfloat16 that are nearest to the exact sums."""
    pipe = fresh()
    pipe.unet = jax.tree.map(lambda x: x.astype(jnp.bfloat16), pipe.unet)
    first = merged(pipe)
    states = [kohya_file(base, rank, rank) for rank in (3, 5)]
    for name, (state, _) in zip("ab", states, strict=True):
        pipe.load_lora_weights({k: v.astype(np.float16) for k, v in state.items()}, name)
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    for (part, name), array in merged(pipe).items():
        key = part, name
        if part != "unet" or key not in states[0][1]:
            continue
        exact = first[key] + 0.7 * states[0][1][key] - 0.4 * states[1][1][key]
        nearest = exact.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
        # Factors were rounded to fp16, and fp32 sums fall on the other side of a tie now and then.
        assert (array == nearest).mean() > 0.9, key
        assert np.abs(array - exact).max() <= 2**-8 * np.abs(exact).max()
    pipe.disable_lora()
    assert all(np.array_equal(array, first[key]) for key, array in merged(pipe).items())


@pytest.mark.parametrize(
    "parallel", [Parallel(patch=2, mode="tensor"), Parallel(cfg=2, patch=2), Parallel(patch=3, emulate=True)], ids=str
)
def test_every_mesh(pipe: Any, base: Any, parallel: Parallel) -> None:
    state, changes = kohya_file(base, 5)
    pipe.load_lora_weights(state, "a")
    for scale in 1.0, 0.5:
        pipe.set_adapters("a", scale)
        pipe.parallel = parallel
        shardings = [x.sharding for x in pipe.place_parts()["unet"].arrays]
        check(pipe, base, changes, scale)
        pipe.disable_lora()
        assert [x.sharding for x in pipe.place_parts()["unet"].arrays] == shardings
        check(pipe, base, {})
        pipe.enable_lora()
        pipe.parallel = Parallel()
        check(pipe, base, changes, scale)


def test_which_are_active(pipe: Any, base: Any) -> None:
    state, changes = kohya_file(base, 2)
    other = {name: -array for name, array in state.items() if "lora_up" in name}
    assert pipe.get_active_adapters() == []
    assert pipe.get_list_adapters() == {}
    pipe.load_lora_weights(state)
    pipe.load_lora_weights({k: v for k, v in (state | other).items() if "_te" not in k}, adapter_name="minus")
    assert pipe.get_active_adapters() == ["default_0"]  # still, in the text encoders
    assert pipe.get_list_adapters()["text_encoder"] == ["default_0"]
    check(pipe, base, {key: value * (-1 if key[0] == "unet" else 1) for key, value in changes.items()})
    pipe.set_adapters(["default_0", "minus"], [{"unet": 0.5, "text_encoder": 0}, 0.5])
    cancelled = merged(pipe)
    assert np.abs(cancelled["unet", f"{CONV}.weight"] - base["unet", f"{CONV}.weight"]).max() < 1e-6
    assert all(np.array_equal(array, base[key]) for key, array in cancelled.items() if key[0] == "text_encoder")
    assert any(not np.array_equal(array, base[key]) for key, array in cancelled.items() if key[0] == "text_encoder_2")
    pipe.delete_adapters("default_0")
    check(pipe, base, {key: value for key, value in changes.items() if key[0] == "unet"}, -0.5)
    pipe.load_lora_weights(state, "minus", hotswap=True)
    check(pipe, base, changes, 0.5)
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    check(pipe, base, {})


def test_fusing(base: Any) -> None:
    pipe = fresh()
    state, changes = kohya_file(base, 2)
    unet = {key: value for key, value in changes.items() if key[0] == "unet"}
    pipe.load_lora_weights(state, "a")
    pipe.fuse_lora(components=["unet"], lora_scale=0.5)
    assert pipe.num_fused_loras == 1
    pipe.place_parts(lora_scale=0.0)  # has no effect on what is fused
    pipe.set_adapters("a", 0.0)
    check(pipe, base, unet, 0.5)
    pipe.unfuse_lora()
    check(pipe, base, {})
    pipe.set_adapters("a")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert pipe.num_fused_loras == 0
    check(pipe, base, changes)


def test_pipelines_share_adapters_and_calls_scale_them(pipe: Any, base: Any) -> None:
    state, changes = kohya_file(base, 2)
    other = StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    pipe.load_lora_weights(state, "a")
    assert other.get_active_adapters() == ["a"]
    check(other, base, changes)
    call = {"prompt": "a red circle", "seed": 1, "height": 32, "width": 32, "output_type": "latent"}
    call["num_inference_steps"] = 2
    pictures = {scale: pipe(**call, cross_attention_kwargs={"scale": scale}).images for scale in (0.0, 0.5, 1.0)}
    steps = pipe.seconds["compiling"]
    assert np.array_equal(pipe(**call).images, pictures[1.0])
    pipe.set_adapters("a", 0.5)
    assert np.array_equal(pipe(**call).images, pictures[0.5])
    pipe.disable_lora()
    assert np.array_equal(pipe(**call).images, pictures[0.0])
    assert not np.allclose(pictures[0.0], pictures[0.5], atol=1e-3)
    assert pipe.seconds["compiling"] == steps
    pipe.enable_lora()
    plain, half = pipe.encode_prompt("a red circle", lora_scale=0), pipe.encode_prompt("a red circle", lora_scale=1)
    assert not np.allclose(plain[0], half[0], atol=1e-3)
    assert not np.allclose(plain[2], half[2], atol=1e-3), "the pooled embedding"
    assert np.array_equal(half[0], pipe.encode_prompt("a red circle")[0])


def test_blocks(pipe: Any, base: Any) -> None:
    state, changes = kohya_file(base, 2)
    pipe.load_lora_weights(state, "a")
    pipe.set_adapters("a", {"unet": {"down": 0.5, "mid": [0.25], "up": {"block_0": [0.1, 0.2]}}, "text_encoder": 0.75})
    found = merged(pipe)
    for (part, name), change in changes.items():
        weight = {"text_encoder": 0.75}.get(part, 1.0)
        for start, value in {
            "down_blocks.1": 0.5, "mid_block.attentions": 0.25, "up_blocks.0.attentions.1": 0.2,
            "up_blocks.0.upsamplers.0": 0.1,
        }.items():  # fmt: skip
            weight = value if part == "unet" and name.startswith(start) else weight
        assert np.abs(found[part, name] - base[part, name] - weight * change).max() < 1e-6, name


WRONG_WEIGHTS = [
    ("x", "must be a finite number"), (float("nan"), "must be a finite number"), ([1, 2], "2 adapter_weights"),
    ({"vae": 1}, "the key 'vae'"), ({"unet": {"left": 1}}, "the key 'left'"), ({"up": {"block_1": 1}}, "block_0"),
    ({"up": {"block_0": [1, 2, 3]}}, "a list of 2"), ({"down": "x"}, r"\['down'\]\['block_1'\] is 'x'"),
    ({"mid": [1, 2]}, r"\['mid'\] is"), ({"text_encoder": {}}, "finite number"), (True, "finite number"),
]  # fmt: skip


def test_wrong_arguments(pipe: Any, base: Any) -> None:
    state, _ = kohya_file(base, 2)
    pipe.load_lora_weights(state, "a")
    for weight, message in WRONG_WEIGHTS:
        with pytest.raises(DistrijaxError, match=message):
            pipe.set_adapters("a", weight)
    for call, message in {
        lambda: pipe.set_adapters("b"): "there is no adapter 'b'; there are a",
        lambda: pipe.set_adapters(5): "adapter_names is 5",
        lambda: pipe.set_adapters(["a", "a"]): "each name once",
        lambda: pipe.delete_adapters("b"): "there is no adapter 'b'",
        lambda: pipe.load_lora_weights(state, "a"): "adapter_name is 'a', which is loaded already",
        lambda: pipe.load_lora_weights(state, 5): "adapter_name is 5",
        lambda: pipe.load_lora_weights(state, "b", hotswap=True): "there is no adapter 'b'",
        lambda: pipe.load_lora_weights(5): "source is 5",
        lambda: pipe.load_lora_weights({}): "has no tensors",
        lambda: pipe.load_lora_weights({"a": "b"}): "source has 'a': str",
        lambda: pipe.load_lora_weights("demo:nothing"): "demo:nothing: there is no such adapter .* outlines",
        lambda: pipe.load_lora_weights("nowhere.safetensors"): "there is no such file",
        lambda: pipe.load_lora_weights("lora.bin"): "is a pickle",
        lambda: pipe.fuse_lora(components=["vae"]): "components is",
        lambda: pipe.fuse_lora(components=[]): "components is",
        lambda: pipe.fuse_lora(lora_scale="x"): "lora_scale is 'x'",
        lambda: pipe.encode_prompt("x", lora_scale="x"): "lora_scale is 'x'",
    }.items():
        with pytest.raises(DistrijaxError, match=message):
            call()
    assert pipe.get_list_adapters()["unet"] == ["a"]


def test_folders(pipe: Any, base: Any, tmp_path: Path) -> None:
    state, changes = kohya_file(base, 2)
    for name in "one", "two":
        save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(DistrijaxError, match=r"with weight_name; it holds one.safetensors, two.safetensors"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(DistrijaxError, match=r"holds no three.safetensors; it holds one"):
        pipe.load_lora_weights(tmp_path, weight_name="three.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="two.safetensors")
    check(pipe, base, changes)
    pipe.load_lora_weights(tmp_path.parent, subfolder=tmp_path.name, weight_name="one.safetensors")


def test_all_that_does_not_fit_is_listed_and_nothing_changes(pipe: Any, base: Any) -> None:
    state, _ = kohya_file(base, 2)
    names = [name for name in state if "lora_down" in name]
    state["lora_unet_something.lora_down.weight"] = np.zeros((2, 3), np.float32)
    state[names[0]] = state[names[0]][:, :1]
    state[names[1]] = np.full_like(state[names[1]], np.nan)
    del state[names[2].replace("down", "up")]
    state[names[3].replace("lora_down.weight", "dora_scale")] = np.ones(3, np.float32)
    state[names[4].replace("lora_down.weight", "alpha")] = np.ones(3, np.float32)
    state[names[5].replace("lora_down.weight", "diff_b")] = np.ones(99, np.float32)
    state[f"{names[6]}x"] = state[names[6]]
    with pytest.raises(DistrijaxError) as error:
        pipe.load_lora_weights(state)
    message = str(error.value)
    for expected in (
        "2 unknown:", "lora_unet_something.lora_down.weight [2, 3]", "1 with NaN or infinity", "1 missing:",
        "up beside " + names[2], "4 of the wrong shape", names[0], "alpha", "dora_scale",
    ):  # fmt: skip
        assert expected in message, (expected, message)
    assert pipe.get_list_adapters() == {}
    check(pipe, base, {})


REFUSED = {
    "lora_controlnet": "a Control-LoRA",
    "lora_unet_input_blocks_1_1_proj_in.oft_blocks": "an OFT",
    "lora_unet_down_blocks_1_attentions_0_proj_in.a1.weight": "a GLoRA",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "for Flux",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": "for Flux",
    "lora_te3_encoder.lora_down.weight": "for Stable Diffusion 3",
    "model.diffusion_model.input_blocks.0.0.weight": "a model, not an adapter",
    "clip_g": "a textual inversion",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_is_called_what_it_is(pipe: Any, name: str) -> None:
    with pytest.raises(DistrijaxError, match=f"is not a LoRA for this model but {REFUSED[name]}"):
        pipe.load_lora_weights({name: np.zeros((2, 2), np.float32)})


def test_adapters_of_other_models(pipe: Any, base: Any, tmp_path: Path) -> None:
    text = {f"unet.{LINEAR}.lora_A.weight": np.zeros((2, 768)), f"unet.{LINEAR}.lora_B.weight": np.zeros((16, 2))}
    with pytest.raises(DistrijaxError, match=r"is made for Stable Diffusion 1, not(.|\n)*\[2, 768\]"):
        pipe.load_lora_weights(text)
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_x.lora_down.weight": np.zeros((2, 2))}, path, {"ss_base_model_version": "sd_v2_768"})
    with pytest.raises(DistrijaxError, match="is made for Stable Diffusion 2, not"):
        pipe.load_lora_weights(path)


def test_original_names_are_ignored_beside_diffusers(pipe: Any, base: Any, caplog: Any) -> None:
    """As in diffusers, where they would count twice; words that are embedded in a file are ignored, too."""
    state, changes = {}, {}
    for family in "kohya", "kohya with diffusers' paths":
        for (part, layer), name, tensors, rank, rng in every_layer(family, base):
            made, change = lora(rng, base[part, f"{layer}.weight"].shape, rank)
            state |= {f"{name}.{tensors[what]}": array for what, array in made.items()}
            changes[part, f"{layer}.weight"] = change
    for outside in ("time_embed_0", "label_emb_0_2", "out_2"):  # not in a block: the same layer twice
        state = {name: array for name, array in state.items() if outside not in name}
    state["bundle_emb.cat.string_to_param.*"] = np.zeros((1, 8), np.float32)
    pipe.load_lora_weights(state)
    check(pipe, base, changes)
    assert "names of both kinds" in caplog.text
    assert "the words cat" in caplog.text


def test_parts_that_are_replaced(pipe: Any, base: Any) -> None:
    """Another model of the same form gets the adapters, too; one of another form is refused."""
    state, changes = kohya_file(base, 2)
    pipe.load_lora_weights(state)
    pipe.place_parts()
    pipe.unet = jax.tree.map(lambda x: x + 0, fresh().unet)
    check(pipe, base, changes)
    demo = StableDiffusionXLPipeline.from_pretrained("demo", progress=False).unet
    own, pipe.unet = pipe.unet, demo
    with pytest.raises(DistrijaxError, match="was loaded for another unet"):
        pipe.place_parts()
    pipe.unet = own


def test_saving_writes_the_checkpoints_weights(pipe: Any, base: Any, tmp_path: Path) -> None:
    state, changes = kohya_file(base, 2)
    pipe.load_lora_weights(state)
    pipe.place_parts()
    pipe.save_pretrained(tmp_path / "plain")
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    plain, fused = (StableDiffusionXLPipeline.from_pretrained(tmp_path / n, progress=False) for n in ("plain", "fused"))
    assert all(np.array_equal(array, base[key]) for key, array in merged(plain).items())
    check(fused, base, changes)
