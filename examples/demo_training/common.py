"""Code that all stages share: the resumable training loop, checkpoints, and the plot of the logs."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jax.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from distrijax.models.vae import PixelAttention
from distrijax.nn.exchange import WHOLE
from distrijax.nn.resnet import ResnetBlock
from distrijax.nn.transformer import Transformer2D

WHOLE = WHOLE
Tree = dict[str, Any]  # nested dicts of arrays
State = dict[str, Any]  # "params", "opt", and in some stages "ema" and "count": all of it is checkpointed
Metrics = dict[str, jax.Array]
Batch = TypeVar("Batch")


def schedule(peak: float, steps: int, warmup: int = 200) -> optax.Schedule:
    """Return a learning rate with a linear warm-up and a cosine decay to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps // 4), steps, 0.0)


def zero_residual_branches(model: nnx.Module) -> None:
    """Set the last layer of every residual branch to zero: a deep network starts as a shallow one and learns sooner."""
    last = {ResnetBlock: "conv2", Transformer2D: "proj_out", PixelAttention: "to_out"}
    for _, module in nnx.iter_modules(model):
        for kind, name in last.items():
            if isinstance(module, kind):
                layer = getattr(module, name)
                layer.kernel[...] = jnp.zeros_like(layer.kernel[...])


def save(folder: Path, step: int, state: State) -> None:
    """Write the checkpoint `folder/STEP`, which appears only when complete, and keep only the last two."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / str(step), state, force=True)
    for old in checkpoints(folder)[:-2]:
        shutil.rmtree(folder / str(old))


def checkpoints(folder: Path) -> list[int]:
    """Return the steps of all checkpoints in `folder`, in ascending order."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _latest(folder: Path) -> int:
    if steps := checkpoints(folder):
        return steps[-1]
    raise SystemExit(f"no checkpoint in {folder}: run the stage that writes it first")


def load(folder: Path, like: State) -> tuple[int, State]:
    """Return step and state of the latest checkpoint in `folder`, with structure and sharding of `like`."""
    step = _latest(folder)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        return step, checkpointer.restore(folder.absolute() / str(step), abstract)


def load_params(folder: Path) -> Tree:
    """Return the parameters of the latest checkpoint in `folder`, the averaged ones if it has them."""
    path = folder.absolute() / str(_latest(folder))
    here = SingleDeviceSharding(jax.devices()[0])  # a run on another number of devices may have written it
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), metadata)
        tree = checkpointer.restore(path, dict(like))
    return tree.get("ema") or tree["params"]


def assign(module: nnx.Module, tree: Tree, *, partial: bool = False) -> None:
    """Set the parameters of `module` to those of `tree`, as `load_params` returns it.

    Args:
        partial: Keep the parameters that `tree` lacks.

    Raises:
        SystemExit: The parameters of `tree` have other names or shapes than those of `module`.
    """
    state = nnx.state(module)
    leaves = {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    values = {tuple(str(key.key) for key in path[:-1]): value for path, value in jax.tree.leaves_with_path(tree)}
    shapes, own_shapes = ({(path, x.shape) for path, x in each.items()} for each in (values, leaves))
    if not (shapes <= own_shapes if partial else shapes == own_shapes):
        raise SystemExit("the checkpoint is of another model: its parameters have other names or shapes")
    for path, value in values.items():
        leaves[path][...] = jnp.asarray(value)
    nnx.update(module, state)


def run(
    folder: Path,
    state: State,
    step: Callable[[State, Batch], tuple[State, Metrics]],
    batches: Callable[[int], Iterator[Batch]],
    steps: int,
    *,
    resume: bool,
    every: int,
    on_checkpoint: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Train until `steps`, write the loss to `folder/loss.jsonl`, and a checkpoint every `every` steps.

    Args:
        step: Returns the next state, and what is to be logged.
        batches: Called with the first step, so that a resumed run continues with other data than it started with.
        on_checkpoint: Called after each checkpoint with its step and state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, log = 0, folder / "loss.jsonl"
    if previous := checkpoints(folder):
        if not resume:  # `save` keeps the higher step numbers, whichever run they come from
            raise SystemExit(f"{folder} has a run of {previous[-1]} steps: continue it with --resume, or move it away")
        start, state = load(folder, state)
    elif log.exists():
        log.unlink()
    history: list[Metrics] = []
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, mininterval=5, smoothing=0.05)
    index = start - 1
    for index, batch in zip(bar, batches(start), strict=False):
        state, metrics = step(state, batch)
        history.append(metrics)  # read later: waiting for a number here would delay the drawing of the next batch
        if (index + 1) % 50 == 0 or index + 1 == steps:
            means = {k: float(np.mean([float(m[k]) for m in history])) for k in history[0]}
            with log.open("a") as file:
                file.write(json.dumps({"step": index + 1, **means}) + "\n")
            bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
            history = []
        if (index + 1) % every == 0 or index + 1 == steps:
            save(folder, index + 1, state)
            on_checkpoint(index + 1, state)
    if index + 1 not in (start, *checkpoints(folder)):  # the batches ended before `steps`
        save(folder, index + 1, state)
        on_checkpoint(index + 1, state)
    return state


@contextmanager
def complete_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under `path` only when complete."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        yield file
    partial.rename(path)


def write_sheet(pictures: np.ndarray, columns: int, path: Path, side: int = 128) -> None:
    """Write pictures (uint8 [N, H, W, 3]) side by side into one PNG, each scaled to `side` pixels."""
    lines = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    full = np.concatenate([line for line in lines if line.shape[1] == lines[0].shape[1]], 0)
    scale = side / pictures.shape[1]
    size = (int(full.shape[1] * scale), int(full.shape[0] * scale))
    Image.fromarray(full).resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def to_uint8(pictures: ArrayLike) -> np.ndarray:
    """Map pixel values from [-1, 1] to 0..255."""
    return np.asarray(np.round(np.clip(np.asarray(pictures, np.float32) * 0.5 + 0.5, 0, 1) * 255), np.uint8)


def plot_losses(logs: dict[str, Path], path: Path) -> None:
    """Write one PNG with the logged values of each stage over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(logs), figsize=(5 * len(logs), 3.2), dpi=80)
    for axis, (title, log) in zip(np.atleast_1d(axes), logs.items(), strict=True):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        for key in entries[0]:
            if key != "step":
                axis.plot([e["step"] for e in entries], [e[key] for e in entries], label=key, linewidth=1)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
