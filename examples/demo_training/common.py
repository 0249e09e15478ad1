"""What all stages share: the resumable loop, checkpoints, the log and its plot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from PIL import Image
from tqdm import tqdm

from distrijax.models.vae import PixelAttention
from distrijax.nn.attention import Transformer2D
from distrijax.nn.resnet import ResnetBlock

State = dict[str, Any]  # "params", "ema" (or None), "opt": arrays; all of it is checkpointed


def schedule(peak: float, steps: int, warmup: int = 200) -> optax.Schedule:
    """Linear warm-up, then a cosine down to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps // 4), steps, 0.0)


def save(folder: Path, step: int, state: State) -> None:
    """Write `folder/STEP` by orbax (it appears only when complete) and drop all but the last two."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / str(step), state, force=True)
    for old in checkpoints(folder)[:-2]:
        shutil.rmtree(folder / str(old))


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _latest(folder: Path) -> int:
    if steps := checkpoints(folder):
        return steps[-1]
    raise SystemExit(f"no checkpoint in {folder}: run the stage that writes it first")


def load(folder: Path, like: Any) -> tuple[int, Any]:
    """The latest checkpoint of `folder`, its step and its state, with the structure of `like`."""
    step = _latest(folder)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    with ocp.StandardCheckpointer() as checkpointer:
        return step, checkpointer.restore(folder.absolute() / str(step), abstract)


def quiet_residuals(model: nnx.Module) -> None:
    """Let every residual branch begin at zero: a deep network then starts as a shallow one, and learns sooner."""
    last = {ResnetBlock: "conv2", Transformer2D: "proj_out", PixelAttention: "to_out"}
    for _, module in nnx.iter_modules(model):
        for kind, name in last.items():
            if isinstance(module, kind):
                layer = getattr(module, name)
                layer.kernel[...] = jnp.zeros_like(layer.kernel[...])


def load_params(folder: Path) -> Any:
    """Of the latest checkpoint of `folder` the parameters alone, the averaged ones if there are any, as plain dicts."""
    path = folder.absolute() / str(_latest(folder))
    here = SingleDeviceSharding(jax.devices()[0])  # a run on another number of devices may have written it
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.metadata(path).item_metadata
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), kept)
        tree = checkpointer.restore(path, dict(like))
    return tree.get("ema") or tree["params"]


def fill(module: nnx.Module, tree: Any) -> None:
    """Put what `load_params` gave (or a part of it) into a module of the same structure."""
    given = {tuple(str(key.key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    state = nnx.state(module)
    flat = [((*map(str, path), "value"), leaf) for path, leaf in nnx.to_flat_state(state)]
    assert {path for path, _ in flat} == set(given), "the checkpoint is of another model"
    for path, leaf in flat:
        leaf[...] = jnp.asarray(given[path])
    nnx.update(module, state)


def run(
    folder: Path,
    state: State,
    step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    batches: Callable[[int], Iterator[Any]],
    steps: int,
    *,
    resume: bool,
    every: int,
    at_checkpoint: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Train until `steps`, with a checkpoint, a look and the log written `every` so many.

    batches: called with the first step, so that a resumed run goes on with other data than it started with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, log = 0, folder / "loss.jsonl"
    if kept := checkpoints(folder):
        if not resume:  # of two runs in one folder the higher numbers would be kept, whichever is newer
            raise SystemExit(f"{folder} has a run of {kept[-1]} steps: go on with it by --resume, or move it away")
        start, state = load(folder, state)
    elif log.exists():
        log.unlink()
    seen: list[dict[str, jax.Array]] = []
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, mininterval=5, smoothing=0.05)
    index = start - 1
    for index, batch in zip(bar, batches(start), strict=False):
        state, metrics = step(state, batch)
        seen.append(metrics)  # read later: a number asked for now would keep the next batch from being drawn meanwhile
        if (index + 1) % 50 == 0 or index + 1 == steps:
            means = {k: float(np.mean([float(m[k]) for m in seen])) for k in seen[0]}
            with log.open("a") as out:
                out.write(json.dumps({"step": index + 1, **means}) + "\n")
            bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
            seen = []
        if (index + 1) % every == 0 or index + 1 == steps:
            save(folder, index + 1, state)
            at_checkpoint(index + 1, state)
    if index + 1 not in (start, *checkpoints(folder)):  # the batches ended before `steps`
        save(folder, index + 1, state)
        at_checkpoint(index + 1, state)
    return state


def save_arrays(path: Path, **arrays: Any) -> None:
    """A .npz file that appears only when complete."""
    with _appearing(path) as file:
        np.savez(file, **arrays)


def save_array(path: Path, array: np.ndarray) -> None:
    """A .npy file that appears only when complete."""
    with _appearing(path) as file:
        np.save(file, array)


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        yield file
    partial.rename(path)


def sheet(pictures: np.ndarray, columns: int, path: Path, side: int = 128) -> None:
    """uint8 [N, H, W, 3] side by side in one PNG, each scaled to `side`."""
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    full = np.concatenate([r for r in rows if r.shape[1] == rows[0].shape[1]], 0)
    scale = side / pictures.shape[1]
    size = (int(full.shape[1] * scale), int(full.shape[0] * scale))
    Image.fromarray(full).resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


def to_uint8(pictures: Any) -> np.ndarray:
    """[-1, 1] to 0..255."""
    return np.asarray(np.round(np.clip(np.asarray(pictures, np.float32) * 0.5 + 0.5, 0, 1) * 255), np.uint8)


def plot(logs: dict[str, Path], path: Path) -> None:
    """The loss of every stage over its steps, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(logs), figsize=(5 * len(logs), 3.2), dpi=80)
    for axis, (title, log) in zip(np.atleast_1d(axes), logs.items(), strict=True):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for key in rows[0]:
            if key != "step":
                axis.plot([r["step"] for r in rows], [r[key] for r in rows], label=key, linewidth=1)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
