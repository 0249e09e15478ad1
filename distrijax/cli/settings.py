"""What a picture is made from: the settings that its PNG carries, and that `--like` takes from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, get_type_hints

from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.schedulers import find_recipe


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a picture; where they are options, they have the option's name.

    Attributes:
        lora: the adapters, each a dictionary with `file`, `weight` and `sha256`.
        image, mask: paths of the picture to start from and of its mask, as they were typed.
        image_sha256, mask_sha256: digests of these files, as hexadecimal digits.
        strength: None without `image`.
        embedding, embedding_sha256: textual inversions, FILE[:TOKEN] as they were typed, and a digest of each file.
        switch_at: None without `refiner`.
        upscale: factor; `height` and `width` are those of the picture before.
        height, width: in pixels. With `image` alone, they are those of the result, and no option; with `mask`, the size
            at which the model paints.
        timesteps: a name, or numbers with commas between.
        seed: that of this picture alone.
        mode: the one that the picture was made in.
        mode_chosen_by: "auto" if that was its choice.
        max_waiting: None for the default.
        upscale_mode: the one that it was enlarged in, if another.
    """

    prompt: str | None = None
    model: str = "demo"
    variant: str | None = None
    config: str | None = None
    unet: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    scheduler: str | None = None
    karras_sigmas: bool | None = None
    timestep_spacing: str | None = None
    prediction_type: str | None = None
    timesteps: str | None = None
    lora: list | None = None
    image: str | None = None
    image_sha256: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    padding_mask_crop: int | None = None
    strength: int | float | None = None
    embedding: list | None = None
    embedding_sha256: list | None = None
    prompt_syntax: str = "plain"
    refiner: str | None = None
    switch_at: int | float | None = None
    upscale: int | float | None = None
    upscale_method: str | None = None
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    height: int | None = None
    width: int | None = None
    steps: int = 30
    guidance_scale: int | float = 5.0
    guidance_rescale: int | float = 0.0
    eta: int | float = 0.0
    clip_skip: int | None = None
    seed: int | None = None
    data: int = Parallel.data
    cfg: int = Parallel.cfg
    patch: int = Parallel.patch
    mode: str = Parallel.mode
    mode_chosen_by: str | None = None
    max_waiting: int | float | None = None
    upscale_mode: str | None = None
    warmup_steps: int = Parallel.warmup_steps
    emulate: bool = Parallel.emulate

    def updated(self, values: Mapping[str, object]) -> Self:
        """Return these settings with those of `values`, in which other names are ignored.

        Raises:
            DistrijaxError: a value has the wrong type, as in a PNG that another program has edited.
        """
        types = get_type_hints(type(self))
        for name, value in values.items():
            if name in types and not isinstance(value, types[name]):
                raise DistrijaxError(f"the setting {name} is {value!r}; it must be {types[name]}")
        return type(self)(**vars(self) | {name: value for name, value in values.items() if name in types})

    def with_recipe(self, name: str) -> Self:
        """Return these settings with those of a recipe for few-step models.

        Raises:
            DistrijaxError: there is no such recipe.
        """
        recipe = find_recipe(name)
        values: dict[str, Any] = {"scheduler": recipe.kind.class_name, "steps": recipe.steps, "eta": recipe.eta}
        values["warmup_steps"] = recipe.warmup_steps
        values |= {"guidance_scale": recipe.guidance_scale, "karras_sigmas": None}
        values |= {"timestep_spacing": None, "prediction_type": None, **recipe.options}
        timesteps = ",".join(map(str, recipe.timesteps)) if recipe.timesteps else None
        return dataclasses.replace(self, **values, timesteps=timesteps)


def parse_timesteps(text: str | None) -> str | list[float] | None:
    """Return the argument `timesteps` of a call: a name, or numbers.

    Raises:
        DistrijaxError: the text is neither.
    """
    if text is None or text.isalpha():
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DistrijaxError(
            f"--timesteps is {text!r}; it must be ays, or numbers with commas between, such as 999,749,499,249"
        ) from None
