"""Checkpoints in every form, from one to another and into modules: bit for bit, and only when complete."""

import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from flax import nnx
from helpers_checkpoint import (
    VAE,
    assert_same_states,
    base_pipeline,
    randomised,
    refiner_pipeline,
    states,
    tokenizer,
    write_tokenizer,
)
from safetensors.torch import load_file, save_file

from distrijax import cli
from distrijax.checkpoint import component as component_module
from distrijax.checkpoint import convert, export, load, open_source, tokenizer_folder, verify
from distrijax.checkpoint import store as store_module
from distrijax.checkpoint.tables import text_encoder_table
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.nn.exchange import WHOLE
from distrijax.parallel.options import Parallel
from distrijax.schedulers import EulerDiscreteScheduler


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def base(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(base, tmp_path_factory.mktemp("converted") / "sdxl", progress=False)


def diffusers_load(folder: Path, kind: Any = StableDiffusionXLPipeline, **options: Any) -> Any:
    return kind.from_pretrained(folder, add_watermarker=False, low_cpu_mem_usage=False, **options)


def parameters(module: nnx.Module) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(module))}


def same_parameters(ours: Any, others: Any) -> bool:
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, two = (parameters(getattr(components, name)) for components in (ours, others))
        if list(one) != list(two) or any(one[path].tobytes() != two[path].tobytes() for path in one):
            return False
    return True


def rewrite(folder: Path, name: str, change: Any) -> None:
    """Change a component's state dict."""
    file = next((folder / name).glob("*.safetensors"))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_there_and_back_is_exact(reference: Any, base: Path, converted: Path, tmp_path: Path) -> None:
    back = export(converted, tmp_path / "back", progress=False)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        files = [next((folder / name).glob("*.safetensors")) for folder in (base, back)]
        assert files[0].name == files[1].name
        theirs, ours = map(load_file, files)
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        configs = [json.loads((folder / name / "config.json").read_text()) for folder in (base, back)]
        assert configs[0] == configs[1]
        module = type(getattr(reference, name))(**_constructor(getattr(reference, name)))
        module.load_state_dict(ours, strict=True)
    for path in ("model_index.json", "scheduler/scheduler_config.json"):
        assert json.loads((back / path).read_text()) == json.loads((base / path).read_text())
    for path in [*base.glob("tokenizer*/*")]:
        assert (back / path.relative_to(base)).read_bytes() == path.read_bytes()
    assert_same_states(diffusers_load(back), reference)


def _constructor(module: torch.nn.Module) -> dict[str, Any]:
    return dict(module.config) if hasattr(module, "register_to_config") else {"config": module.config}


def test_every_form_loads_the_same(base: Path, converted: Path, tmp_path: Path) -> None:
    one, two = load(base, progress=False), load(converted, progress=False)
    assert same_parameters(one, two)
    assert same_parameters(one, load(export(converted, tmp_path / "back", progress=False), progress=False))
    assert one.unet.config == two.unet.config
    assert one.scheduler.config == two.scheduler.config
    assert one.index == two.index
    assert one.index["force_zeros_for_empty_prompt"] is True
    assert one.tokenizer == two.tokenizer
    with tokenizer_folder(one.tokenizer_2) as folder:
        assert {path.name for path in folder.iterdir()} == set(one.tokenizer_2)


def test_loaded_models_compute_what_torch_computes(reference: Any, converted: Path) -> None:
    # fp32 on both sides; a wrong tensor, or one in the wrong place, would be off by 1e-1 and more.
    ours, px, random = load(converted, progress=False), WHOLE, np.random.default_rng(0)

    def close(mine: jax.Array, theirs: torch.Tensor) -> None:
        theirs = theirs.detach().numpy()
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=0, atol=2e-5 * theirs.std())

    ids = random.integers(0, 500, (2, 77))
    ids[:, -1] = 599
    for mine, theirs in ((ours.text_encoder, reference.text_encoder), (ours.text_encoder_2, reference.text_encoder_2)):
        expected = theirs(torch.tensor(ids), output_hidden_states=True)
        encoding = jax.jit(type(mine).__call__)(mine, jnp.asarray(ids, jnp.int32))
        close(encoding.hidden_states[-2], expected.hidden_states[-2])
        close(encoding.pooled, expected[0] if "text_embeds" in expected else expected[1])
    shapes = (2, 8, 8, 4), (2, 77, 64), (2, 32)
    latents, context, pooled = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    image = reference.vae.decode(torch.tensor(latents).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    close(jax.jit(lambda vae, x: vae.decode(x, px))(ours.vae, latents), image)
    moments = reference.vae.encode(image.permute(0, 3, 1, 2)).latent_dist.mean.permute(0, 2, 3, 1)
    close(jax.jit(lambda vae, x: vae.encode(x, px)[0])(ours.vae, image.detach().numpy()), moments)
    sizes = np.array([[64.0, 64, 0, 0, 64, 64]] * 2, np.float32)
    added = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
    x = torch.tensor(latents).permute(0, 3, 1, 2)
    expected = reference.unet(x, 500, torch.tensor(context), added_cond_kwargs=added)

    @jax.jit
    def predict(unet: Any, latents: jax.Array, *conditions: jax.Array) -> jax.Array:
        return unet(latents, jnp.float32(500), unet.condition(*conditions), px)

    close(predict(ours.unet, latents, context, pooled, sizes), expected.sample.permute(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = base_pipeline(tmp_path / "tokenizers", dtype)
    pipe.save_pretrained(tmp_path / "base", variant="half")
    converted = convert(tmp_path / "base", tmp_path / "converted", variant="half", progress=False)
    back = export(converted, tmp_path / "back", target_variant="half", progress=False)
    straight = export(tmp_path / "base", tmp_path / "straight", variant="half", progress=False)
    assert (back / "unet" / "diffusion_pytorch_model.half.safetensors").is_file()
    assert (back / "text_encoder" / "model.half.safetensors").is_file()
    assert_same_states(diffusers_load(back, variant="half", torch_dtype=dtype), pipe)
    assert_same_states(diffusers_load(straight, torch_dtype=dtype), pipe)
    ours = jnp.float16 if dtype == torch.float16 else jnp.bfloat16
    parts = dataclasses.asdict(load(converted, progress=False))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        # This autoencoder says force_upcast.
        expected = jnp.float32 if (name, ours) == ("vae", jnp.float16) else ours
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(parts[name]))} == {jnp.dtype(expected)}


def test_dtypes_are_cast_alike_everywhere(base: Path, converted: Path, tmp_path: Path) -> None:
    one, two = (load(source, dtype=jnp.bfloat16, progress=False) for source in (base, converted))
    assert same_parameters(one, two)
    half = convert(base, tmp_path / "half", dtype=jnp.bfloat16, progress=False)
    assert same_parameters(one, load(half, progress=False))
    sizes = [sum(path.stat().st_size for path in (folder / "unet").rglob("*")) for folder in (half, converted)]
    assert sizes[0] < 0.6 * sizes[1], "cast before it is written"
    kernel = parameters(load(base, progress=False).unet)["conv_in.kernel"]
    assert (parameters(one.unet)["conv_in.kernel"] == kernel.astype(ml_dtypes.bfloat16)).all()
    mixed = load(converted, dtype={"unet": jnp.float16, "vae": "float32"}, progress=False)
    assert parameters(mixed.unet)["conv_in.kernel"].dtype == np.float16
    assert parameters(mixed.vae)["quant_conv.kernel"].dtype == np.float32
    for dtype in ("int8", "float64", "no such dtype"):
        with pytest.raises(DistrijaxError, match="choose float32, bfloat16 or float16"):
            load(base, dtype=dtype, progress=False)
    with pytest.raises(DistrijaxError, match="no component 'u-net'"):
        load(base, dtype={"u-net": jnp.float32}, progress=False)


def test_values_beyond_float16_are_refused(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    rewrite(folder, "unet", lambda state: state | {"conv_in.bias": torch.full((32,), 1e5)})
    converted = convert(folder, tmp_path / "converted", progress=False)
    for source in (folder, converted):
        with pytest.raises(DistrijaxError, match=r"unet.*conv_in.bias: holds values beyond float16"):
            load(source, dtype=jnp.float16, progress=False)
    with pytest.raises(DistrijaxError, match="use bfloat16"):
        convert(folder, tmp_path / "half", dtype=jnp.float16, progress=False)
    assert not (tmp_path / "half").exists()


def test_refiner(tmp_path: Path) -> None:
    pipe = refiner_pipeline(tmp_path / "tokenizers")
    pipe.save_pretrained(tmp_path / "refiner")
    converted = convert(tmp_path / "refiner", tmp_path / "converted", progress=False)
    components = load(converted, progress=False)
    assert components.text_encoder is None
    assert components.tokenizer is None
    assert components.index["requires_aesthetics_score"] is True
    assert components.index["force_zeros_for_empty_prompt"] is False
    back = export(converted, tmp_path / "back", progress=False)
    assert_same_states(diffusers_load(back, StableDiffusionXLImg2ImgPipeline), pipe)


def test_convolutional_projections_and_guidance_embedding(tmp_path: Path) -> None:
    pipe = base_pipeline(tmp_path / "tokenizers", use_linear_projection=False, time_cond_proj_dim=16)
    pipe.save_pretrained(tmp_path / "base")
    converted = convert(tmp_path / "base", tmp_path / "converted", progress=False)
    assert_same_states(diffusers_load(export(converted, tmp_path / "back", progress=False)), pipe)


def test_split_files(reference: Any, base: Path, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path / "split", max_shard_size="60KB")
    assert len(list((tmp_path / "split" / "unet").glob("*-of-*.safetensors"))) > 3
    assert (tmp_path / "split" / "text_encoder" / "model.safetensors.index.json").is_file()
    assert same_parameters(load(tmp_path / "split", progress=False), load(base, progress=False))
    reference.save_pretrained(tmp_path / "variant", max_shard_size="80KB", variant="fp16")
    assert same_parameters(load(tmp_path / "variant", variant="fp16", progress=False), load(base, progress=False))


def test_older_names(base: Path, tmp_path: Path) -> None:
    """VAE attention of before diffusers 0.17, also as 1x1 convolutions; transformers' buffer and prefix."""
    expected = load(base, progress=False)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae(state: dict[str, torch.Tensor], flat: bool) -> dict[str, torch.Tensor]:
        for name in [name for name in state if "attentions" in name and "group_norm" not in name]:
            tensor = state.pop(name)
            for today, before in old.items():
                name = name.replace(today, before)
            state[name] = tensor if flat or tensor.ndim == 1 else tensor[:, :, None, None].contiguous()
        assert "decoder.mid_block.attentions.0.proj_attn.weight" in state
        return state

    def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        buffer = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        return {"text_model." + name: value for name, value in state.items()} | buffer

    for flat in (True, False):
        folder = shutil.copytree(base, tmp_path / f"flat{flat}")
        rewrite(folder, "vae", lambda state, flat=flat: vae(state, flat))
        rewrite(folder, "text_encoder", prefixed)
        assert same_parameters(load(folder, progress=False), expected)
    back = export(folder, tmp_path / "back", progress=False)
    names = load_file(back / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names), "exported as it came"
    assert_same_states(diffusers_load(back), diffusers_load(base))


def test_text_encoder_table_reads_both_spellings() -> None:
    for prefix in ("", "text_model."):
        table = text_encoder_table(prefix)
        for given in ("", "text_model."):
            entry = table.to_ours(given + "encoder.layers.10.self_attn.q_proj.weight")
            assert entry is not None
            assert entry.name == "encoder.layers.10.self_attn.q_proj.kernel"
        assert table.to_torch("final_layer_norm.scale").name == prefix + "final_layer_norm.weight"
        assert table.to_torch("text_projection.kernel").name == "text_projection.weight"


def test_another_vae(base: Path, converted: Path, tmp_path: Path) -> None:
    other = randomised(AutoencoderKL(**VAE | {"force_upcast": False}), 9)
    other.save_pretrained(tmp_path / "vae")
    expected = states(diffusers_load(base))["vae"].keys()
    for source in (base, converted):
        loaded = load(source, vae=tmp_path / "vae", progress=False)
        assert loaded.vae.config.force_upcast is False
        kernel = parameters(loaded.vae)["post_quant_conv.kernel"]
        assert np.array_equal(kernel, other.post_quant_conv.weight.detach().permute(0, 2, 3, 1).numpy())
    new = convert(base, tmp_path / "new", vae=tmp_path / "vae", progress=False)
    back = diffusers_load(export(new, tmp_path / "back", progress=False))
    assert all(torch.equal(back.vae.state_dict()[name], other.state_dict()[name]) for name in expected)
    assert back.vae.config.force_upcast is False
    for same in (new, tmp_path / "back", tmp_path / "vae" / "diffusion_pytorch_model.safetensors"):
        loaded = load(base, vae=same, progress=False)
        assert np.array_equal(parameters(loaded.vae)["post_quant_conv.kernel"], kernel)


def test_another_tokenizer(base: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "clip", "<|endoftext|>")
    loaded = load(base, tokenizer=tmp_path / "clip", progress=False)
    for files, pad in ((loaded.tokenizer, "<|endoftext|>"), (loaded.tokenizer_2, "!")):
        assert json.loads(files["tokenizer_config.json"])["pad_token"] == pad
        assert json.loads(files["special_tokens_map.json"])["pad_token"] == pad
        with tokenizer_folder(files) as folder:
            ids = type(tokenizer(tmp_path / pad[:1] / "t", pad)).from_pretrained(str(folder))("a", padding="max_length")
        assert len(ids["input_ids"]) == 77


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what Linux says this process has read")
def test_several_devices_read_a_checkpoint_once(tmp_path: Path) -> None:
    """Of a copy on each of eight devices, every byte is read from the disk a single time, not eight."""
    convert(MODEL, tmp_path / "demo", dtype="float32", progress=False)  # large enough to tell from the small files
    size = sum(file.stat().st_size for file in (tmp_path / "demo").rglob("*"))

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    loaded = load(tmp_path / "demo", sharding=Parallel(patch=8).replicated, progress=False)
    assert len(jax.tree.leaves(nnx.state(loaded.unet))[0].devices()) == 8
    print(f"{(read() - before) / 1e6:.1f} MB read of {size / 1e6:.1f} MB")
    assert read() - before < 1.5 * size


def test_placement_on_several_devices(converted: Path) -> None:
    """Each device its own part, from the disk straight to it."""
    script = f"""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from flax import nnx
from distrijax.checkpoint import load
one = load({str(converted)!r}, sharding=jax.devices()[1], progress=False)
leaves = jax.tree.leaves(nnx.state(one.unet))
assert {{device for leaf in leaves for device in leaf.devices()}} == {{jax.devices()[1]}}
mesh = jax.make_mesh((2,), ("patch",), axis_types=(AxisType.Auto,))
both = load({str(converted)!r}, dtype=jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()), progress=False)
for leaf, other in zip(leaves, jax.tree.leaves(nnx.state(both.unet))):
    assert len(other.addressable_shards) == 2 and other.dtype == jnp.bfloat16
    assert all(np.array_equal(s.data, np.asarray(leaf).astype(jnp.bfloat16)) for s in other.addressable_shards)
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
try:
    load({str(converted)!r}, sharding=NamedSharding(mesh, PartitionSpec(None, "patch")), progress=False)
    raise AssertionError
except DistrijaxError as error:
    assert "does not fit unet's" in str(error), error
print("done", len(leaves))
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.startswith("done"), result.stderr


def test_checkpoints_of_earlier_versions_load(tmp_path: Path) -> None:
    """`converted_format_1.tar.xz` was written when the format began, from these weights."""
    pipe = base_pipeline(tmp_path / "tokenizers")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for key, value in getattr(pipe, name).named_parameters():
            value.data = (torch.arange(value.numel()) % (len(key) + 13)).reshape(value.shape).float() / 8
        getattr(pipe, name).half()
    with tarfile.open(Path(__file__).parent / "data" / "converted_format_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    back = export(tmp_path / "converted", tmp_path / "back", progress=False)
    assert_same_states(diffusers_load(back, torch_dtype=torch.float16), pipe)
    parts = load(tmp_path / "converted", sharding=Parallel(patch=8).replicated, dtype=jnp.float32, progress=False)
    expected = pipe.unet.conv_in.weight.detach().float().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(parameters(parts.unet)["conv_in.kernel"], expected)


def test_progress_counts_every_byte(base: Path, converted: Path, tmp_path: Path) -> None:
    from distrijax.checkpoint.export import write_folder

    for source in (base, converted):
        opened = open_source(source)
        done: list[int] = []
        (tmp_path / source.name).mkdir()
        write_folder(opened, tmp_path / source.name, progress=done.append)
        assert sum(done) == opened.nbytes
    done = []
    (tmp_path / "store").mkdir()
    store_module.write_store(open_source(base), tmp_path / "store", progress=done.append)
    assert sum(done) == opened.nbytes


def test_batches_bound_the_memory(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small limit there are many batches, and the result is the same."""
    counts: list[int] = []
    batches = store_module.batches

    def small(named: Any) -> Any:
        for group in batches(named, 50_000):
            size = sum(value.nbytes for _, value in group)
            assert size <= 50_000 or len(group) == 1
            counts.append(len(group))
            yield group

    monkeypatch.setattr(store_module, "batches", small)
    converted = convert(base, tmp_path / "converted", progress=False)
    assert len(counts) > 50
    assert same_parameters(load(converted, progress=False), load(base, progress=False))


def test_targets_are_not_overwritten_unasked(base: Path, converted: Path, tmp_path: Path) -> None:
    target = shutil.copytree(converted, tmp_path / "target")
    for write in (convert, export):
        with pytest.raises(DistrijaxError, match="already exists"):
            write(base, target, progress=False)
    convert(base, target, overwrite=True, progress=False)
    export(target.parent / "target", tmp_path / "diffusers", progress=False)
    convert(base, tmp_path / "diffusers", overwrite=True, progress=False)
    load(tmp_path / "diffusers", progress=False)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("precious", "file"):
        with pytest.raises(DistrijaxError, match="is not a checkpoint, and is not overwritten"):
            convert(base, tmp_path / name, overwrite=True, progress=False)
    (tmp_path / "empty").mkdir()
    convert(base, tmp_path / "empty", progress=False)
    for target in (converted, converted / "inside"):
        with pytest.raises(DistrijaxError, match="overlaps"):
            export(converted, target, overwrite=True, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diffusers", "empty", "file", "precious", "target"]


@pytest.mark.parametrize("write", [convert, export])
def test_a_failure_leaves_nothing(write: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def failing(*arguments: Any) -> Any:
        nonlocal count
        if (count := count + 1) == 300:
            raise OSError(28, "No space left on device")
        return np.ascontiguousarray(arguments[0])

    monkeypatch.setattr(component_module, "cast", failing)
    with pytest.raises(DistrijaxError, match="No space left on device"):
        write(base, tmp_path / "target", progress=False)
    assert count == 300
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old(base: Path, converted: Path, tmp_path: Path, monkeypatch: Any) -> None:
    target = shutil.copytree(converted, tmp_path / "target")

    def failing(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(component_module, "cast", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(base, target, overwrite=True, progress=False)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    load(target, progress=False)


SLOWLY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with Ctrl-C ignored
import sys, time
from distrijax.checkpoint import component, convert, store
store.batches.__defaults__ = (100_000,)  # Ctrl-C is heard between batches
cast, count = component.cast, 0
def slow(*arguments):
    global count
    count += 1
    if count == 250:
        print("midway", flush=True)
    if count >= 250:
        time.sleep(0.2)
    return cast(*arguments)
component.cast = slow
convert(sys.argv[1], sys.argv[2], progress=False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_conversion_leaves_no_checkpoint(number: int, base: Path, tmp_path: Path) -> None:
    target, partial = tmp_path / "target", tmp_path / ".target.partial"
    command = [sys.executable, "-c", SLOWLY, base, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"midway\n"
        assert list(tmp_path.iterdir()) == [partial]
        with pytest.raises(DistrijaxError, match="neither"):
            load(partial, progress=False)
        with pytest.raises(DistrijaxError, match="is being written by another process"):
            convert(base, target, progress=False)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert not target.exists()
    if number == signal.SIGINT:
        assert not partial.exists(), "an interrupted conversion cleans up itself"
    else:
        with pytest.raises(DistrijaxError, match="left by one that was killed"):
            convert(base, target, progress=False)
        convert(base, target, overwrite=True, progress=False)
        load(target, progress=False)
        assert list(tmp_path.iterdir()) == [target]


def test_scripts(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    scripts = Path(__file__).parent.parent / "convert"
    for script, source, target in (("convert_sdxl", base, "one"), ("export_diffusers", tmp_path / "one", "two")):
        command = [str(scripts / f"{script}.py"), str(source), str(tmp_path / target), "--dtype", "float16"]
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert str(tmp_path / target) in result.stdout
        assert "100%" in result.stderr, "a progress bar"
        for arguments, code in ((command, 2), ([command[0], "--help"], 0)):
            monkeypatch.setattr(sys, "argv", arguments)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(command[0], run_name="__main__")
            assert ended.value.code == code
        output, errors = capsys.readouterr()
        assert errors.startswith("distrijax: error: ")
        assert errors.count("\n") == 1
        assert "--overwrite" in output


def test_relative_paths(base: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader of every form, from the folder that holds it."""
    (tmp_path / "a b #1 %20").mkdir()
    monkeypatch.chdir(tmp_path / "a b #1 %20")
    expected = load(base, progress=False)
    assert convert(base, "sdxl", progress=False) == tmp_path / "a b #1 %20" / "sdxl"
    export("sdxl", Path("folder"), progress=False)
    for form in ("sdxl", "./sdxl", "sdxl/", "../a b #1 %20/sdxl", "folder", Path("folder")):
        assert same_parameters(load(form, progress=False), expected)
        assert same_parameters(load(base, vae=form, unet=form, progress=False), expected)
    assert same_parameters(load("folder", vae="folder/vae", scheduler="folder/scheduler", progress=False), expected)
    assert convert("sdxl", "again", progress=False).is_dir()
    assert verify("again") > 100


def test_mixed_variants(base: Path, tmp_path: Path) -> None:
    """As in diffusers: the variant where there is one, the plain file elsewhere."""
    folder = shutil.copytree(base, tmp_path / "base")
    for name, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        state = {key: value + 1 for key, value in load_file(folder / name / f"{file}.safetensors").items()}
        save_file(state, folder / name / f"{file}.fp16.safetensors", metadata={"format": "pt"})
    back = export(folder, tmp_path / "back", variant="fp16", progress=False)
    assert_same_states(diffusers_load(back), diffusers_load(folder, variant="fp16"))
    changed, plain = load(folder, variant="fp16", progress=False), load(folder, progress=False)
    for name, differs in (("unet", True), ("text_encoder", True), ("vae", False), ("text_encoder_2", False)):
        ours, own = (jax.tree.leaves(nnx.state(getattr(parts, name)))[0] for parts in (changed, plain))
        assert bool((ours != own).any()) == differs, name


def test_a_whole_file_beside_shards(reference: Any, base: Path, tmp_path: Path) -> None:
    """As in diffusers: its own models are read from the shards, transformers' from the whole file."""
    reference.save_pretrained(tmp_path / "split", max_shard_size="60KB")
    for name, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        state = {key: value + 1 for key, value in load_file(base / name / f"{file}.safetensors").items()}
        save_file(state, tmp_path / "split" / name / f"{file}.safetensors", metadata={"format": "pt"})
    back = export(tmp_path / "split", tmp_path / "back", progress=False)
    assert_same_states(diffusers_load(back), diffusers_load(tmp_path / "split"))


def test_the_scheduler_is_the_class_that_the_index_names(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")

    def name_class(kind: str) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))

    name_class("DDIMScheduler")
    assert type(diffusers_load(folder).scheduler).__name__ == load(folder, progress=False).scheduler.class_name
    for kind in ("DEISMultistepScheduler", "SASolverScheduler", "ScoreSdeVeScheduler", "IPNDMScheduler"):
        name_class(kind)
        with pytest.raises(DistrijaxError, match=f"'{kind}' is not supported; ask for another one, with scheduler= or"):
            load(folder, progress=False)
        for other in ("euler", "EulerDiscreteScheduler", folder / "scheduler", EulerDiscreteScheduler()):
            assert load(folder, scheduler=other, progress=False).scheduler.class_name == "EulerDiscreteScheduler"
    assert load(folder, scheduler="ddim", progress=False).scheduler.beta_end == 0.012
    converted = convert(folder, tmp_path / "converted", scheduler="unipc", progress=False)
    assert load(converted, progress=False).scheduler.class_name == "UniPCMultistepScheduler"


def test_the_base_model_of_other_sdxl_pipelines(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    more = {"_class_name": "StableDiffusionXLControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | more))
    back = export(folder, tmp_path / "back", progress=False)
    assert_same_states(diffusers_load(back), diffusers_load(base))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of reads that are under way
def test_flipped_bits(base: Path, tmp_path: Path) -> None:
    """A flipped bit is found, or lies where nothing depends on it."""
    good = convert(base, tmp_path / "good", progress=False)
    opened = open_source(good)
    assert verify(good) == sum(len(component.tensors) for component in opened.components.values())
    expected = dict(opened.components["vae"].stream())
    found = set()
    for file in [good / "distrijax.json", good / "tokenizer" / "tokenizer.json", *(good / "vae").rglob("*")]:
        if not file.is_file() or not file.stat().st_size:
            continue
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        file.write_bytes(flipped)
        try:
            for path, array in open_source(good).components["vae"].stream():
                assert array.tobytes() == expected[path].tobytes(), file
        except DistrijaxError:
            found.add(file.parent.name if file.parent.name == "d" else file.name)
        file.write_bytes(content)
    assert {"distrijax.json", "tokenizer.json", "d"} <= found
    verify(good)


def test_verifying(base: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(base), str(tmp_path / "new"), "--verify", "--quiet"]) == 0
    assert cli.main(["convert", str(converted), "--verify"]) == 0
    assert capsys.readouterr().err.count("tensors are as they were written") == 2
    for arguments, message in (
        ([str(base)], "there is no target"),
        ([str(base), "--verify"], "safetensors files carry no checksums"),
    ):
        assert cli.main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err
    with tarfile.open(Path(__file__).parent / "data" / "converted_format_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with pytest.raises(DistrijaxError, match="converted before there were checksums"):
        verify(tmp_path / "converted")
