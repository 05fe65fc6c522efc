"""The simulated user of benchmarks/base.py: one object in one slice, ten correcting clicks, and one exact box.

The user knows nothing of the network: it puts queries in voxels and gets masks in voxels. `Network` is the one place
that turns them into model pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from base_data import Slices, Target
from numpy.typing import NDArray
from torch import Tensor

from lib.honour import honour_clicks
from lib.model.medsa import MedSA, PlanePrompts, SinglePrompt
from lib.prompts.simulate import interior_point, next_click
from lib.transforms.geometry import PlaneGeometry

Feedback = Literal["previous", "none", "again"]

CLICKS = 10
HONOURED_AT = 5  # clicks, after which each of them should lie on its side of the outline
LOGIT_LIMIT = 20.0  # of what is given back as a mask prompt
ENCODED_AT_ONCE, DECODED_AT_ONCE = 8, 24
FAR_MM = 1e6  # between slices: a slice by itself has no neighbours


@dataclass(frozen=True)
class Click:
    """A voxel (u, v), and whether it lies in the object."""

    uv: tuple[int, int]
    positive: bool


@dataclass(frozen=True, eq=False)
class Query:
    """What is asked of plane `row`: clicks, a half-open box (u0, v0, u1, v1) in voxels, logits (m, m)."""

    row: int
    clicks: tuple[Click, ...] = ()
    box_uv: tuple[int, int, int, int] | None = None
    mask_logits: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Reply:
    """`mask` (n_u, n_v) on the voxel grid, the IoU the network expects of it, and its logits (m, m).

    `decoded` (n_u, n_v) is the mask as the network gave it, before the clicks were honoured; in the answers
    that it goes on from they were.
    """

    mask: NDArray[np.bool_]
    predicted_iou: float
    logits: Tensor
    decoded: NDArray[np.bool_]


Ask = Callable[[Sequence[Query]], list[Reply]]


@dataclass(frozen=True)
class Overlap:
    """How far a mask agrees with the truth."""

    dice: float
    iou: float


@dataclass(frozen=True)
class Honoured:
    """How many positive clicks lie inside the mask and how many negative ones outside, of how many."""

    inside: int
    positive: int
    outside: int
    negative: int


@dataclass(frozen=True, eq=False)
class Record:
    """What happened on one target: Dice after each click and with the box, (predicted, true) IoU of every answer."""

    target: Target
    clicks: tuple[Click, ...]
    click_dice: tuple[float, ...]
    box_dice: float
    ious: tuple[tuple[float, float], ...]
    honoured: Honoured
    honoured_by_network: Honoured


@dataclass(eq=False)
class Session:
    """A user at work on one target: the clicks so far and the last answer to them."""

    target: Target
    clicks: list[Click] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    ious: list[tuple[float, float]] = field(default_factory=list)
    last: Reply | None = None
    honoured: Honoured = Honoured(0, 0, 0, 0)
    honoured_by_network: Honoured = Honoured(0, 0, 0, 0)

    def place_click(self) -> bool:
        """Adds the next click; False when nothing is left to correct."""
        click = next_correction(self.target, None if self.last is None else self.last.mask)
        if click is not None:
            self.clicks.append(click)
        return click is not None

    def query(self, feedback: Feedback) -> Query:
        """All clicks so far, and with `previous` the last answer."""
        give_back = feedback == "previous" and self.last is not None
        logits = self.last.logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) if give_back and self.last else None
        return Query(self.target.row, tuple(self.clicks), mask_logits=logits)

    def take(self, reply: Reply) -> None:
        """Takes the answer to the clicks so far."""
        self.last = reply
        self.ious.append((reply.predicted_iou, overlap(reply.mask, self.target.truth).iou))

    def end_step(self) -> None:
        """Writes down where it stands; without a new click that is where it stood."""
        assert self.last is not None
        self.dice.append(overlap(self.last.mask, self.target.truth).dice)
        if len(self.dice) == HONOURED_AT:
            self.honoured = honoured(self.clicks, self.last.mask)
            self.honoured_by_network = honoured(self.clicks, self.last.decoded)


def annotate(ask: Ask, targets: Sequence[Target], feedback: Feedback) -> list[Record]:
    """Ten clicks and, apart from them, a box on each of `targets`, which are all of one volume.

    With `again` every answer to two or more clicks is given back once with the same clicks. A lone click is never
    asked again: what it means is for the network to choose.
    """
    sessions = [Session(target) for target in targets]
    for number in range(1, CLICKS + 1):
        active = [session for session in sessions if session.place_click()]
        for session, reply in zip(active, answers(ask, active, feedback, number), strict=True):
            session.take(reply)
        for session in sessions:
            session.end_step()
    boxed = ask([Query(target.row, box_uv=exact_box(target.truth)) for target in targets])
    return [record(session, reply) for session, reply in zip(sessions, boxed, strict=True)]


def answers(ask: Ask, active: Sequence[Session], feedback: Feedback, number: int) -> list[Reply]:
    """To the clicks of the sessions that go on, `number` each."""
    queries = [session.query(feedback) for session in active]
    replies = ask(queries)
    if feedback != "again" or number == 1:
        return replies
    limited = [reply.logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) for reply in replies]
    return ask([replace(query, mask_logits=logits) for query, logits in zip(queries, limited, strict=True)])


def record(session: Session, boxed: Reply) -> Record:
    """What is kept of a session and of the answer to the box: numbers, no masks."""
    found = overlap(boxed.mask, session.target.truth)
    ious = (*session.ious, (boxed.predicted_iou, found.iou))
    return Record(
        session.target,
        tuple(session.clicks),
        tuple(session.dice),
        found.dice,
        ious,
        session.honoured,
        session.honoured_by_network,
    )


def next_correction(target: Target, mask: NDArray[np.bool_] | None) -> Click | None:
    """The first click without a `mask` (n_u, n_v), else the one on its largest error; None without an error."""
    if mask is None:
        u, v = interior_point(target.truth)
        return Click((u, v), True)
    spacing_mm = (*target.spacing_uv, FAR_MM)
    found = next_click(target.truth[..., None], mask[..., None], 2, spacing_mm)
    if found is None:
        return None
    (u, v, _), positive = found
    return Click((u, v), positive)


def exact_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The half-open box (u0, v0, u1, v1) in voxels around `mask` (n_u, n_v)."""
    u, v = np.nonzero(mask)
    return int(u.min()), int(v.min()), int(u.max()) + 1, int(v.max()) + 1


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
    """Of two masks of one shape, not both empty."""
    common, total = int((mask & truth).sum()), int(mask.sum()) + int(truth.sum())
    return Overlap(2 * common / total, common / (total - common))


def honoured(clicks: Sequence[Click], mask: NDArray[np.bool_]) -> Honoured:
    """Which of `clicks` lie on their side of `mask` (n_u, n_v)."""
    inside = [bool(mask[click.uv]) for click in clicks if click.positive]
    outside = [not mask[click.uv] for click in clicks if not click.positive]
    return Honoured(sum(inside), len(inside), sum(outside), len(outside))


class Network:
    """The model on the slices of one volume, each of them encoded once; clicks are honoured as the server does it."""

    def __init__(self, model: MedSA, slices: Slices) -> None:
        self.model, self.geometry = model, slices.geometry
        self.embeddings = encode(model, slices)

    @torch.inference_mode()
    def __call__(self, queries: Sequence[Query]) -> list[Reply]:
        """Answers in the order of `queries`, some decoded at once."""
        replies: list[Reply] = []
        for start in range(0, len(queries), DECODED_AT_ONCE):
            replies += self._decode(queries[start : start + DECODED_AT_ONCE])
        return replies

    def _decode(self, queries: Sequence[Query]) -> list[Reply]:
        prompts = [model_prompt(query, self.geometry) for query in queries]
        embeddings = self.embeddings[[query.row for query in queries]]
        ambiguous = torch.tensor([prompt.is_ambiguous for prompt in prompts])
        decoded, ious = self.model.decode(embeddings, PlanePrompts.stack(prompts)).choose(ambiguous)
        pairs = zip(decoded, prompts, strict=True)
        logits = torch.stack([honour_clicks(one, prompt.points, self.geometry) for one, prompt in pairs])
        masks = self._to_voxels(logits)
        before = masks if torch.equal(logits, decoded) else self._to_voxels(decoded)
        return [Reply(*reply) for reply in zip(masks, ious.tolist(), logits, before, strict=True)]

    def _to_voxels(self, logits: Tensor) -> NDArray[np.bool_]:
        return self.geometry.logits_to_voxels(logits).numpy() > 0


@torch.inference_mode()
def encode(model: MedSA, slices: Slices) -> Tensor:
    """Embeddings (B, 256, g, g) of the planes."""
    planes = torch.from_numpy(np.ascontiguousarray(slices.planes))
    return torch.cat(
        [model.encode(slices.geometry.planes_to_model(part)) for part in planes.split(ENCODED_AT_ONCE)]
    )


def model_prompt(query: Query, geometry: PlaneGeometry) -> SinglePrompt:
    """The same in model pixels."""
    places = geometry.points_to_model(np.array([click.uv for click in query.clicks], dtype=float))
    points = [
        (float(x), float(y), int(click.positive)) for (x, y), click in zip(places, query.clicks, strict=True)
    ]
    box = None
    if query.box_uv is not None:
        box = geometry.boxes_to_model(np.array([query.box_uv], dtype=float))[0].tolist()
    return SinglePrompt(points, box, query.mask_logits)
