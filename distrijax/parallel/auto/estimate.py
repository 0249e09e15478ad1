"""How long a step takes and waits, estimated without compiling: a step in miniature, walked with a clock.

Every question of the U-Net stands for the layers around it, whose time is a sum of five terms. Transfers go over one
link, of as many bytes as the answers state: those of carried pieces are issued when the step begins, and others where
their question is asked, or with the group norm before; a kernel or two run until their result is needed. The numbers in
`fitted.py` are fitted to what `distrijax plan` says of programs that XLA compiled, which walks their kernels and
transfers in the same way.
"""

import dataclasses
import operator
from collections.abc import Sequence

from distrijax.parallel.answers.attention import AttentionAnswer
from distrijax.parallel.answers.halos import HaloAnswer
from distrijax.parallel.answers.moments import MomentsAnswer
from distrijax.parallel.auto.fitted import FITTED
from distrijax.parallel.auto.questions import Constants, Question
from distrijax.parallel.cards import Rates
from distrijax.parallel.policies import Policy

KERNELS = {"halo": 6, "moments": 4, "attention": 17}
"""Kernels of the layers around a question, about, as XLA fuses them: for an attention, of its transformer block."""

DEALING = 5, 19
"""More kernels of an attention that is dealt by heads, and how many times as much as its keys they move. Together they
take 30 µs for 2.6 MB of keys, 71 for 9.2 (compiled for H100s)."""

ROUND_TRIP = 1500  # cycles of an access to memory, as in `plan`
EXPONENTIALS = 13  # of a multiprocessor in a cycle
TEXT = 77  # tokens of cross-attention
MESSAGES = 24  # that carry all keys and values of the last step, about: see `runtime/xla_options.py`


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of the devices that share a picture computes.

    Attributes:
        height: rows of the whole picture's latents.
        rows, columns: of its latents on this device, padding included.
        pictures: in its batch, guidance branches counted.
        devices: that share a picture.
        itemsize: bytes of a number.
        branches_apart: whether other devices have the other guidance branch.
        network: whether these devices are in several machines.
    """

    height: int
    rows: int
    columns: int
    pictures: int
    devices: int
    itemsize: int = 2
    branches_apart: bool = False
    network: bool = False

    def size(self, level: int) -> tuple[int, int, int]:
        """Return rows and columns of this device, and rows of the picture, at a level of the U-Net."""
        factor = 2**level
        return -(-self.rows // factor), -(-self.columns // factor), -(-self.height // factor)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The seconds of a step, and those of them that it waits."""

    seconds: float
    waiting: float

    @property
    def share(self) -> float:
        """The part of the step that it waits."""
        return self.waiting / self.seconds


def answer(question: Question, policy: Policy) -> HaloAnswer | MomentsAnswer | AttentionAnswer:
    """Return how a policy answers a question."""
    if question.kind == "halo":
        return policy.halo_of(question.layer)
    return policy.moments if question.kind == "moments" else policy.attention


def message(question: Question, policy: Policy, share: Share) -> tuple[int, float]:
    """Return the messages of this layer alone, and the bytes that a device receives."""
    rows, columns, _ = share.size(question.level)
    row = share.pictures * columns * question.channels * share.itemsize
    if question.kind == "halo":
        halo = HaloAnswer() if question.layer in policy.fresh else policy.halo_of(question.layer)
        messages, received = halo.receives(share.devices)
        return messages, received * row
    if question.kind == "moments":
        return 1, 256.0 * share.pictures * (share.devices - 1)
    return policy.attention.receives(rows * row, share.pictures * question.heads, share.devices)


def work(question: Question, policy: Policy, share: Share, rates: Rates) -> tuple[float, float, float, float, float]:
    """Return the seconds of the layers around a question: products, attention, memory, kernels, round trips."""
    rows, columns, height = share.size(question.level)
    pixels, kernels = share.pictures * rows * columns, KERNELS[question.kind]
    channels, out, size = question.channels, question.out, share.itemsize
    products = scores = exponentials = 0.0
    if question.kind == "halo":
        after = pixels / 4 if question.halves else pixels
        products = 18 * after * channels * out
        moved = (pixels * channels + after * out + 9 * channels * out) * size
    elif question.kind == "moments":
        moved = 3 * pixels * channels * size
    else:
        keys = height * columns + TEXT
        products, scores = 36 * pixels * channels**2, 4 * pixels * keys * channels
        exponentials = pixels * keys * question.heads
        dealt = message(question, policy, share)[0] == 2
        kernels += DEALING[0] * dealt
        moved = ((40 + DEALING[1] * dealt) * pixels * channels + 18 * channels**2) * size
    attention = scores / rates.flops + exponentials / (EXPONENTIALS * rates.clock * rates.cores)
    starts, trips = kernels * rates.kernel, kernels * ROUND_TRIP / rates.clock
    return products / rates.flops, attention, moved / rates.memory, starts, trips


class _Clock:
    """The time on a device, and what its link has carried.

    Attributes:
        now: seconds since the step began.
        link: when the link will be free.
        sent: messages so far.
        arrivals: by layer, when what it needs is there.
    """

    def __init__(self, policy: Policy, share: Share, rates: Rates):
        self.policy, self.share, self.now, self.link, self.sent = policy, share, 0.0, 0.0, 0
        self.rate = rates.network if share.network else rates.link
        self.latency = rates.network_latency if share.network else rates.latency
        self.arrivals = dict[str, float]()

    def send(self, questions: Sequence[Question], messages: int) -> float:
        """Send the answers to these questions together; return when they arrive."""
        received = sum(message(question, self.policy, self.share)[1] for question in questions)
        self.link = max(self.now, self.link) + messages * self.latency + received / self.rate
        self.arrivals |= {question.layer: self.link for question in questions}
        self.sent += messages
        return self.link


def estimate(
    questions: Sequence[Question], policy: Policy, share: Share, rates: Rates, fit: Constants = FITTED
) -> Estimate:
    """Return how long a step of this policy takes and waits."""
    clock, waiting = _Clock(policy, share, rates), 0.0
    answers = {q.layer: answer(q, policy) for q in questions if q.layer not in policy.fresh}
    waits = {layer for layer, given in answers.items() if given.waits}
    carried = [q for q in questions if q.layer in answers and answers[q.layer].carries and answers[q.layer].sends]
    clock.send(first := [q for q in questions if q.layer in policy.fresh], 2 * len(first))
    for kind, packed in (("halo", 2), ("moments", 1)):
        if together := [q for q in carried if q.kind == kind]:
            clock.send(together, packed)
    tokens, asked = [q for q in carried if q.kind == "attention"], 0
    layers = -(-len(tokens) // MESSAGES)  # of a message
    if tokens:
        clock.send(tokens[: max(2, layers)], 1)
    for question, following in zip(questions, [*questions[1:], None], strict=True):
        terms = work(question, policy, share, rates)
        takes, ready = sum(map(operator.mul, fit.terms, terms)), clock.arrivals.get(question.layer, 0.0)
        if question.layer in waits and question.layer not in clock.arrivals:
            messages, _ = message(question, policy, share)
            together = [question]
            if following is not None and following.kind == "halo" and question.kind == "moments":
                together += [following] * policy.halo_of(following.layer).with_moments
            # Kernels that need nothing of a message run meanwhile: small ones, or the next of the three projections.
            # Attention dealt by heads has two messages, and all three projections are in the first.
            projection = fit.terms[0] * terms[0] / 18 if question.kind == "attention" else 0.0
            meanwhile = fit.hidden[question.kind] * (_small_kernel(rates, fit) + projection)
            ready = clock.send(together, messages) - (meanwhile if messages == 1 else 0.0)
        waited = max(0.0, ready - clock.now)
        waiting, clock.now = waiting + waited, clock.now + waited
        if question.kind == "attention" and tokens:
            asked += 1
            if (asked + 1) % layers == 0 and (ahead := tokens[asked + 1 : asked + 1 + layers]):
                clock.send(ahead, 1)  # while the last layers of the message before are still to come
        clock.now += takes + rates.slowed * min(max(clock.link - clock.now, 0.0), takes)
    if share.branches_apart:
        waiting, clock.now, clock.sent = waiting + clock.latency, clock.now + clock.latency, clock.sent + 1
    enqueued = rates.enqueue * (clock.sent + sum(KERNELS[question.kind] for question in questions))
    return Estimate(max(clock.now, enqueued), waiting)


def _small_kernel(rates: Rates, fit: Constants) -> float:
    """Return the seconds of a kernel that starts, reads, and has nothing else to do."""
    return fit.terms[3] * rates.kernel + fit.terms[4] * ROUND_TRIP / rates.clock
