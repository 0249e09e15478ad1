"""Reading a pipeline's parts from a checkpoint, and writing them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack, get_args

import flax
import jax
import jax.numpy as jnp
import jaxlib

from distrijax.checkpoint import DTypes, SourceOptions, save_diffusers
from distrijax.checkpoint import Parts as Loaded
from distrijax.checkpoint.load import load_part, opened
from distrijax.checks import instance_of, path_of, true_or_false
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.models.text_encoder import TextEncoder
from distrijax.parallel.options import Parallel
from distrijax.pipelines.unsupported import LOADING_ADVICE
from distrijax.pipelines.weights import NETWORKS, PlacedWeights
from distrijax.runtime.agreement import check_same_everywhere
from distrijax.runtime.processes import is_first
from distrijax.schedulers import Scheduler
from distrijax.text.tokenizer import Tokenizer

FLAGS = "force_zeros_for_empty_prompt", "requires_aesthetics_score"
"""What a checkpoint's `model_index.json` says beside the names of its parts."""


class LoadOptions(SourceOptions, total=False):
    torch_dtype: DTypes


class Loading(PlacedWeights):
    """The methods of a pipeline that read and write checkpoints."""

    vae: Autoencoder
    text_encoder: TextEncoder | None
    text_encoder_2: TextEncoder | None
    tokenizer: Tokenizer | None
    tokenizer_2: Tokenizer | None
    scheduler: Scheduler

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: DTypes | None = None,
        parallel: Parallel | None = None,
        progress: bool = True,
        compile: Mapping[str, Any] | None = None,
        preview: Autoencoder | str | Path | None = None,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load the pipeline of a checkpoint.

        Args:
            source: "demo", which is built in; a converted checkpoint, a diffusers folder, an original `.safetensors`
                file, or a hub id.
            dtype: of weights and arithmetic. The default is the checkpoint's own; on a CPU it is float32, since XLA
                has no float16 attention there.
            parallel: the devices and how they share pictures; by default one device.
            progress: show a progress bar while loading; False silences it.
            compile: arguments of `compile`, which then runs while the weights are read; `{}` for the defaults.
            preview: a small autoencoder for previews, an object or a source such as "madebyollin/taesdxl".
            options: `torch_dtype`, the same as `dtype`; `variant`, `config` and `tokenizer`; and `unet`, `vae`,
                `text_encoder`, `text_encoder_2` and `scheduler`, objects or paths that replace the checkpoint's own.

        Raises:
            DistrijaxError: the source cannot be found or read, or is not an SDXL checkpoint.
        """
        for name in options:
            if name in LOADING_ADVICE:
                raise DistrijaxError(f"{name}: {LOADING_ADVICE[name]}")
        torch_dtype = options.pop("torch_dtype", None)
        if dtype is not None and torch_dtype is not None:
            raise DistrijaxError("both dtype and torch_dtype are given; they mean the same, so give one")
        dtype = torch_dtype if dtype is None else dtype
        if jax.default_backend() == "cpu" and dtype is None:
            dtype = jnp.float32
        parallel = Parallel() if parallel is None else parallel
        instance_of("parallel", parallel, Parallel, "a Parallel")
        show = true_or_false("progress", progress)
        versions = {module.__name__: module.__version__ for module in (jax, jaxlib, flax)}
        check_same_everywhere({"parallel": repr(parallel), "dtype": str(dtype), "versions": versions})
        shapes, read = opened(source, dtype=dtype, sharding=parallel.replicated, **options)  # type: ignore[misc]
        small = None
        if preview is not None:
            kinds = str, Path, *get_args(Autoencoder)
            instance_of("preview", preview, kinds, "an autoencoder, or a source of one")
            of_vae = dtype.get("vae") if isinstance(dtype, Mapping) else dtype
            small = load_part("vae", preview, dtype=of_vae, sharding=parallel.replicated)
        pipe: Any = cls(  # type: ignore[call-arg]  # of the pipelines
            **{name: getattr(shapes, name) for name in NETWORKS},
            preview=small,
            tokenizer=None if shapes.tokenizer is None else Tokenizer(shapes.tokenizer, "tokenizer"),
            tokenizer_2=Tokenizer(shapes.tokenizer_2, "tokenizer_2"),
            scheduler=shapes.scheduler,
            force_zeros_for_empty_prompt=bool(shapes.index.get("force_zeros_for_empty_prompt", True)),
            requires_aesthetics_score=bool(shapes.index.get("requires_aesthetics_score", False)),
            parallel=parallel,
        )
        pipe.source = str(source)
        pipe.set_progress_bar_config(disable=not show)
        if compile is not None:
            pipe._begin_compiling(**compile)
        parts = read(show and is_first())
        for name in NETWORKS:
            setattr(pipe, name, getattr(parts, name))
        pipe.place_parts()
        pipe.set_progress_bar_config()
        return pipe

    @classmethod
    def from_single_file(cls, file: str | Path, **arguments: Any) -> Self:
        """Load the pipeline of an original `.safetensors` file; arguments as in `from_pretrained`."""
        if not path_of("file", file).is_file():
            raise DistrijaxError(f"{file}: is not a file; folders and hub ids are for from_pretrained")
        return cls.from_pretrained(file, **arguments)

    def save_pretrained(self, folder: str | Path, *, variant: str | None = None, overwrite: bool = False) -> Path:
        """Write the pipeline as a diffusers folder, which appears only when it is complete.

        Args:
            variant: suffix of the weights' file names, such as "fp16".
            overwrite: replace a checkpoint that is there.
        """
        if self.text_encoder_2 is None or self.tokenizer_2 is None:
            raise DistrijaxError("this pipeline has no text_encoder_2 or tokenizer_2, which every SDXL checkpoint has")
        self.place_parts(lora_scale=0)  # without adapters, unless they are fused
        parts = Loaded(
            unet=self.unet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=None if self.tokenizer is None else self.tokenizer.files,
            tokenizer_2=self.tokenizer_2.files,
            scheduler=self.scheduler,
            index={name: getattr(self, name) for name in FLAGS},
        )
        return save_diffusers(folder, parts, variant=variant, overwrite=overwrite)
