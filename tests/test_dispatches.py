"""The host's side of a picture: what is compiled, how often the devices are sent something, and what that walks."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parallel_helpers import small_pipeline

from distrijax import Parallel, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.pipelines import loop
from distrijax.runtime.compile import Program

CALL: dict[str, Any] = {"prompt": "a red circle", "seed": 1, "height": 64, "width": 64, "output_type": "latent"}
LAYOUTS = [Parallel(), Parallel(patch=2, emulate=True)]
LENGTH = loop.dispatch_length

pytestmark = pytest.mark.filterwarnings("ignore:all .* steps are synchronous")


@pytest.fixture(params=LAYOUTS, ids=lambda parallel: f"{parallel.patch}")
def pipe(request: pytest.FixtureRequest) -> StableDiffusionXLPipeline:
    pipe = small_pipeline()
    pipe.parallel = request.param
    return pipe


def test_another_number_of_steps_compiles_nothing_and_takes_few_dispatches(
    pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "dispatch_length", lambda total, seconds: LENGTH(total, 0.0))  # as on a fast device
    pipe(**CALL, num_inference_steps=7)
    compiled, counts, call = pipe.seconds["compiling"], Counter[str](), Program.__call__

    def counted(self: Program, *args: Any, **static: Any) -> Any:
        counts[self.name] += self in pipe.programs.denoise.values()
        return call(self, *args, **static)

    monkeypatch.setattr(Program, "__call__", counted)
    for steps, end in (3, None), (7, 0.8), (13, None), (50, None), (97, None), (200, 0.9):
        counts.clear()
        pipe(**CALL, num_inference_steps=steps, denoising_end=end)
        assert counts.total() <= 8, (steps, counts)
        assert bool(counts["denoising, displaced steps"]) == (pipe.parallel.patch > 1 and steps > 5)
    assert pipe.seconds["compiling"] == compiled


@pytest.mark.parametrize(
    ("parallel", "programs"),
    [(Parallel(), 1), (Parallel(patch=2, emulate=True, mode="stale_gn"), 2), (Parallel(patch=2, emulate=True), 3)],
    ids=["one device", "stale_gn", "predicted, with first pieces"],
)
def test_each_program_traces_the_unet_once(monkeypatch: pytest.MonkeyPatch, parallel: Parallel, programs: int) -> None:
    pipe, traces, call = small_pipeline(), 0, UNet.__call__
    pipe.parallel = parallel

    def counted(*arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return call(*arguments)

    monkeypatch.setattr(UNet, "__call__", counted)
    pipe.compile(**CALL | {"width": 8 * (programs + 2)}, num_inference_steps=8)  # a size that no other test has
    assert traces == programs


@pytest.mark.parametrize("name", ["dpmsolver++", "euler_ancestral"])  # with a state; with noise, in tables of 16 steps
def test_pictures_do_not_depend_on_how_steps_are_dispatched(
    pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pipe, "scheduler", scheduler_from_config(pipe.scheduler.config, name))
    made = []
    for length in (1, 4, 30):
        monkeypatch.setattr(loop, "dispatch_length", lambda total, seconds, length=length: length)
        made.append(pipe(**CALL, num_inference_steps=23).images)
    made.append(pipe(**CALL, num_inference_steps=23, callback_on_step_end=lambda *_: None).images)
    assert np.isfinite(made[0]).all()
    assert all(np.array_equal(picture, made[0]) for picture in made[1:])


@contextmanager
def walks() -> Iterator[Counter[str]]:
    """Count the modules that are flattened, by class."""
    counts = Counter[str]()

    def profile(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name.startswith("_pytree__flatten"):
            counts[type(frame.f_locals["self"]).__name__] += 1

    sys.setprofile(profile)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def test_modules_are_walked_once_and_changed_weights_are_seen() -> None:
    pipe = small_pipeline()
    pipe.parallel = Parallel()
    call = CALL | {"output_type": "np", "num_inference_steps": 7}
    before = pipe(**call).images
    with walks() as counts:
        again = pipe(**call).images
    assert not counts
    assert np.array_equal(again, before)

    bias = pipe.unet.conv_out.bias.get_value()
    pipe.unet.conv_out.bias.set_value(bias + 1)
    with walks() as counts:
        changed = pipe(**call).images
    assert counts["UNet"] > 0 == counts["VAE"]
    assert not np.array_equal(changed, before)
    pipe.unet.conv_out.bias.set_value(np.asarray(bias))  # not on the devices yet
    assert np.array_equal(pipe(**call).images, before)

    pipe.unet = UNet(pipe.unet.config, jnp.float32, rngs=nnx.Rngs(1))
    assert not np.array_equal(pipe(**call).images, before)


def test_compiling_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    pipe, size = small_pipeline(), {"height": 48, "width": 80}
    pipe.parallel = LAYOUTS[1]
    pipe.set_progress_bar_config()
    try:
        pipe.compile(**size, output_type="latent")
        announced = capsys.readouterr().err
        for name in ("denoising, synchronous steps", "denoising, displaced steps"):
            assert f"preparing {name} ..." in announced
            assert f"compiled {name} in " in announced or f"loaded {name} in " in announced
        assert "decoding" not in announced
        pipe(**CALL | size, num_inference_steps=12)
        assert "preparing" not in capsys.readouterr().err
    finally:
        pipe.set_progress_bar_config(disable=True)


def test_compiling_while_weights_are_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With shapes of another kind, such as another sharding, the call would compile again, or JAX would refuse it."""
    began: list[str] = []

    def begin(self: Program, traced: Any, options: Any) -> str:
        began.append(self.name)
        return "compiled"

    monkeypatch.setattr(Program, "_compile", begin)
    parallel = Parallel(cfg=2, patch=2)
    pipe = StableDiffusionXLPipeline.from_pretrained(
        MODEL, progress=False, parallel=parallel, scheduler="ddim", compile={"num_inference_steps": 9}
    )
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert len(began) == 6
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(pipe.components["unet"]))
    pipe.compile(num_inference_steps=30)
    assert len(began) == 6, "other types than those of the weights"
    with pytest.raises(DistrijaxError, match="height is 33"):
        StableDiffusionXLPipeline.from_pretrained(MODEL, progress=False, compile={"height": 33})


def test_refused_callbacks_are_told_the_step(pipe: StableDiffusionXLPipeline) -> None:
    def returns(**tensors: Any) -> Any:
        return lambda pipe, step, timestep, values: tensors if step == 2 else None

    calls = CALL | {"num_inference_steps": 4}
    wide = np.zeros((1, 4, 8, 9), np.float32)
    with pytest.raises(DistrijaxError, match=r"in step 2, .* latents of shape \(1, 4, 8, 9\); .* \(1, 4, 8, 8\)"):
        pipe(**calls, callback_on_step_end=returns(latents=wide))
    for name, shape in {"latents": (1, 4, 8, 8), "prompt_embeds": (2, 77, 32)}.items():
        value = np.full(shape, np.nan, np.float32)
        if name == "prompt_embeds":
            value = np.full((2, 77, pipe.unet.config.cross_attention_dim), np.inf, np.float32)
        with pytest.raises(DistrijaxError, match=f"in step 2, .* {name} with NaN or infinity"):
            pipe(**calls, callback_on_step_end=returns(**{name: value}))


@pytest.mark.parametrize("attribute", ["interrupt", "_interrupt"])
def test_interrupt(attribute: str) -> None:
    pipe, seen = small_pipeline(), []
    pipe.parallel = Parallel()

    def stop(pipe: Any, step: int, timestep: float, tensors: Any) -> None:
        seen.append(step)
        setattr(pipe, attribute, step == 1)

    pipe(**CALL, num_inference_steps=4, callback_on_step_end=stop)
    assert seen == [0, 1]


def broken(module: Any) -> Any:
    return jax.tree.map(lambda x: x * jnp.asarray(np.nan, x.dtype), module)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text_encoder_2", "the prompt's embeddings are not finite .* another text_encoder_2"),
        ("unet", "in denoising step 1 of 9, the latents became not finite .* another unet"),
        ("vae", "the latents are finite, but the picture.* not finite .* another vae"),
    ],
)
def test_what_is_not_finite_is_said(part: str, message: str) -> None:
    whole = small_pipeline()
    whole.parallel = Parallel()
    pipe = StableDiffusionXLPipeline.from_pipe(whole, **{part: broken(getattr(whole, part))})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(DistrijaxError, match=message):
        pipe(**CALL | {"output_type": "np"}, num_inference_steps=9)


def test_steps_that_became_infinite_in_one_dispatch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = small_pipeline()
    pipe.parallel = Parallel()
    monkeypatch.setattr(loop, "dispatch_length", lambda total, seconds: 6)
    schedule = pipe.scheduler.schedule(20)
    for values in schedule.coefficients.values():
        values[10] = np.nan
    monkeypatch.setattr(type(pipe.scheduler), "schedule", lambda *args, **options: schedule)
    with pytest.raises(DistrijaxError, match="in denoising steps 9 to 14 of 20"):
        pipe(**CALL, num_inference_steps=20)
