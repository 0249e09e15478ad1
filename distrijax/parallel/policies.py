"""The modes: how each of a layer's three questions is answered in the steps after the warm-up."""

import dataclasses

from distrijax.models.unet import INPUT_LAYER
from distrijax.parallel.answers.attention import (
    AttentionAnswer,
    FreshAttention,
    FrozenAttention,
    OwnAttention,
    StaleAttention,
)
from distrijax.parallel.answers.halos import EarlyHalos, FreshHalos, FrozenHalos, HaloAnswer, StaleHalos, ZeroHalos
from distrijax.parallel.answers.moments import CorrectedMoments, FreshMoments, MomentsAnswer, OwnMoments, StaleMoments

PROMPTED, GUIDED = "guidance.prompted", "guidance.guided"
"""Names under which the rescaling of guidance asks for the moments of predictions, as if it were a layer."""

FRESH = frozenset({INPUT_LAYER, PROMPTED, GUIDED})


@dataclasses.dataclass(frozen=True)
class Policy:
    """One answer to each of a layer's questions.

    Attributes:
        fresh: layers that wait for this step's values regardless of the answers: a few kB, which depend only on the
            latents or the prediction itself.
    """

    halo: HaloAnswer
    attention: AttentionAnswer
    moments: MomentsAnswer
    fresh: frozenset[str] = FRESH

    @property
    def carries(self) -> bool:
        """Whether a step needs values of the previous one, and so a synchronous warm-up before the first."""
        return self.halo.carries or self.attention.carries or self.moments.carries


FULL_SYNC = Policy(EarlyHalos(), FreshAttention(), FreshMoments())

MODES = {
    "corrected_async_gn": Policy(StaleHalos(), StaleAttention(), CorrectedMoments()),
    "stale_gn": Policy(StaleHalos(), StaleAttention(), StaleMoments()),
    "sync_gn": Policy(StaleHalos(), StaleAttention(), FreshMoments()),
    "separate_gn": Policy(StaleHalos(), StaleAttention(), OwnMoments()),
    "no_sync": Policy(FrozenHalos(), FrozenAttention(), OwnMoments()),
    "halo_sync": Policy(FreshHalos(), StaleAttention(), CorrectedMoments()),
    "full_sync": FULL_SYNC,
    "naive_patch": Policy(ZeroHalos(), OwnAttention(), OwnMoments(), fresh=frozenset()),
}
"""The modes by name, the default first. All but `halo_sync` are those of the original (arXiv 2402.19481)."""

TENSOR = "tensor"
"""The mode that shards weights instead of rows, so that no layer has to ask: see `tensor.py`."""
