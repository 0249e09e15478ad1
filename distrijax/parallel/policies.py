"""The modes: how each of a layer's three questions is answered in the steps after the warm-up."""

import dataclasses

from distrijax.models.unet import INPUT_LAYER
from distrijax.parallel.answers.attention import (
    AttentionAnswer,
    FreshAttention,
    FrozenAttention,
    OwnAttention,
    PredictedAttention,
    StaleAttention,
)
from distrijax.parallel.answers.halos import (
    EarlyHalos,
    FreshHalos,
    FrozenHalos,
    HaloAnswer,
    PredictedHalos,
    StaleHalos,
    ZeroHalos,
)
from distrijax.parallel.answers.moments import (
    CorrectedMoments,
    FreshMoments,
    MomentsAnswer,
    OwnMoments,
    PredictedMoments,
    StaleMoments,
)

PROMPTED, GUIDED = "guidance.prompted", "guidance.guided"
"""Names under which the rescaling of guidance asks for the moments of predictions, as if it were a layer."""

FRESH = frozenset({INPUT_LAYER, PROMPTED, GUIDED})


@dataclasses.dataclass(frozen=True)
class Policy:
    """One answer to each of a layer's questions.

    Attributes:
        fresh: layers that wait for this step's values regardless of the answers: a few kB, which depend only on the
            latents or the prediction itself.
        fresh_halos: parts of the U-Net whose convolutions wait for this step's halos regardless of the answer.
    """

    halo: HaloAnswer
    attention: AttentionAnswer
    moments: MomentsAnswer
    fresh: frozenset[str] = FRESH
    fresh_halos: tuple[str, ...] = ()

    def waits_for_halo(self, layer: str) -> bool:
        """Whether a convolution waits for this step's halo, whatever the answer."""
        return layer in self.fresh or layer.startswith(self.fresh_halos)

    def halo_of(self, layer: str) -> HaloAnswer:
        """Return the answer to a convolution that is not one of `fresh`."""
        return FreshHalos() if self.waits_for_halo(layer) else self.halo

    @property
    def predicts(self) -> bool:
        """Whether a step needs values of the two steps before it."""
        return self.halo.predicts or self.attention.predicts or self.moments.predicts

    @property
    def carries(self) -> bool:
        """Whether a step needs values of the previous one, and so a synchronous warm-up before the first."""
        return self.halo.carries or self.attention.carries or self.moments.carries


FULL_SYNC = Policy(EarlyHalos(), FreshAttention(), FreshMoments())

MODES = {
    "predicted": Policy(PredictedHalos(), PredictedAttention(), PredictedMoments()),
    "halo_sync_up": Policy(
        PredictedHalos(),
        PredictedAttention(),
        PredictedMoments(),
        fresh_halos=("unet.up_blocks.0.", "unet.up_blocks.1."),
    ),
    "halo_sync": Policy(FreshHalos(), PredictedAttention(), PredictedMoments()),
    "full_sync": FULL_SYNC,
    "corrected_async_gn": Policy(StaleHalos(), StaleAttention(), CorrectedMoments()),
    "stale_gn": Policy(StaleHalos(), StaleAttention(), StaleMoments()),
    "sync_gn": Policy(StaleHalos(), StaleAttention(), FreshMoments()),
    "separate_gn": Policy(StaleHalos(), StaleAttention(), OwnMoments()),
    "no_sync": Policy(FrozenHalos(), FrozenAttention(), OwnMoments()),
    "naive_patch": Policy(ZeroHalos(), OwnAttention(), OwnMoments(), fresh=frozenset()),
}
"""The modes by name, the default first.

Those that predict are not in the original (arXiv 2402.19481), whose own default is `corrected_async_gn`.
"""

BY_EXACTNESS = ("full_sync", "halo_sync", "halo_sync_up", "predicted")
"""The modes that `auto` chooses from: the nearest to one device first, which waits for most."""

AUTO = "auto"
"""The mode that is chosen for each picture, when its size is known: see `auto`."""

TENSOR = "tensor"
"""The mode that shards weights instead of rows, so that no layer has to ask: see `tensor.py`."""
