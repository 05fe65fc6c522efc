"""What the page at /medsa/ shows, gathered from what is on disk; nothing is changed or remembered."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from lib.activelearning.chooser import DEFAULT, Ranking
from lib.activelearning.leases import Lease
from lib.activelearning.reasons import why_none
from lib.scoring.scores import ScoreFolder, progress_of
from lib.scoring.survey import stamp_of
from lib.server.curve import Point, curve_points, draw_curve
from lib.server.loop import Housekeeping, status
from lib.server.parts import Parts, describe_base
from lib.server.queue_view import QueueView
from lib.settings import NightlySettings
from lib.trainers.medsa_trainer import MedsaTrainer
from lib.training.account import Entry, plain, standing
from lib.training.suspicion import still_suspicious

DECISIONS = 10  # that the page shows


@dataclass(frozen=True)
class Queue:
    """The labels that wait for a training, and in words when it starts."""

    pending: tuple[str, ...]
    labelled: int
    when: str


@dataclass(frozen=True)
class Running:
    """The training that runs: percent of its time, what it does, its loss if known, since when (UTC)."""

    percent: int
    doing: str
    loss: float | None
    started: datetime | None


@dataclass(frozen=True)
class NextCase:
    """What the default strategy would offer to a new client now, and why; `case` None: there is none.

    `rank` of `of` unlabelled cases, since better ones may be on lease; `parts` are the numbers behind the reason.
    `link` opens it in OHIF, where the studies are a PACS's; `picture` is where it is least sure, from the page.
    """

    case: str | None
    reason: str
    rank: int = 0
    of: int = 0
    parts: tuple[tuple[str, float], ...] = ()
    link: str | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Curve:
    """One label's learning curve: the drawing (SVG) and its points."""

    label: str
    svg: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class PageState:
    """All that the page shows, at the time `now`. `choices` are the versions that a rollback can go to."""

    task: str
    now: datetime
    base: str | None
    base_reason: str | None
    version: int | None
    champion: int | None
    problem: str | None
    rollback_to: int | None
    choices: tuple[int, ...]
    curves: tuple[Curve, ...]
    queue: Queue
    running: Running | None
    decisions: tuple[Entry, ...]
    suspicious: tuple[dict[str, Any], ...]
    nightly: str
    next_case: NextCase
    scoring: str


def page_state(
    parts: Parts, store: Any, queue: QueueView, housekeeping: Housekeeping, now: datetime
) -> PageState:
    """The state of things at `now`."""
    base, releases = describe_base(parts.serving), standing(parts.releases)
    ranking = parts.chooser.ranking(DEFAULT, *parts.chooser.candidates(store))
    following = next_case(ranking, parts.leases.table(), now) or NextCase(None, why_no_case(parts, store))
    entries = queue.entries()
    return PageState(
        task=parts.settings.task.name,
        now=now,
        base=base["base"],
        base_reason=base["base_reason"],
        version=base["version"],
        champion=releases["serving"],
        problem=base["problem"] or releases["problem"],
        rollback_to=releases["rollback_to"],
        choices=rollback_choices(releases),
        curves=tuple(
            Curve(label, draw_curve(label, points), tuple(points))
            for label, points in curve_points(entries).items()
        ),
        queue=_queue(parts, store, queue, status(parts, housekeeping), now),
        running=running_training(MedsaTrainer(parts.train, parts.state).stats()),
        decisions=tuple(reversed(entries[-DECISIONS:])),
        suspicious=tuple(map(plain, still_suspicious(queue.records(), queue.digests()))),
        nightly=nightly_text(parts.settings.training.nightly),
        next_case=replace(
            following,
            link=ohif_link(store, following.case),
            picture=picture_link(parts.scores, store, following.case),
        ),
        scoring=scoring_text(scoring_progress(parts, store)),
    )


def rollback_choices(releases: Mapping[str, Any]) -> tuple[int, ...]:
    """The versions of `standing` that do not serve: the one that a rollback goes to, then the newest first."""
    others = [version for version in reversed(releases["versions"]) if version != releases["serving"]]
    return tuple(sorted(others, key=lambda version: version != releases["rollback_to"]))


def running_training(stats: Mapping[str, Any]) -> Running | None:
    """From the trainer's progress; None while nothing is trained."""
    if not stats.get("running"):
        return None
    started, loss = stats.get("start_ts"), stats.get("loss")
    percent = 100 * int(stats.get("epoch", 0)) // max(int(stats.get("total_epochs", 100)), 1)
    return Running(
        min(max(percent, 0), 100),
        str(stats.get("status", "")),
        float(loss) if isinstance(loss, int | float) else None,
        datetime.fromtimestamp(started, UTC) if isinstance(started, int | float) else None,
    )


def when_it_starts(
    about: Mapping[str, Any], idle_minutes: float, saved: datetime | None, now: datetime
) -> str:
    """When the next training starts by itself, in words.

    `about` is the answer of GET /medsa/status; `saved` is when the newest of the waiting labels was saved.
    """
    pending, wanted = about["pending_labels"], about["train_after"]
    if about["training"]:
        return "A training runs; what was saved after its start is for the next one."
    if not about["auto_train"]:
        return "Training starts only when somebody asks for it (auto_train is off)."
    if about["training_due"]:
        return "A training is due and starts at once."
    if about["obstacle"] is not None:
        return f"No training starts: {about['obstacle']}."
    if pending >= wanted:
        return "It was tried for these labels already; a new label or somebody who asks starts the next training."
    text = f"A training starts with {wanted} new labels, {wanted - pending} more."
    if pending and idle_minutes and saved is not None:
        start = saved + timedelta(minutes=idle_minutes)
        text += f" Without a further label it starts at {max(start, now):%H:%M} UTC."
    return text


def why_no_case(parts: Parts, store: Any) -> str:
    """Why nobody can be given one now."""
    unlabelled, candidates = store.get_unlabeled_images(), parts.chooser.candidates(store)
    return why_none(len(store.list_images()), len(unlabelled), len(unlabelled) - len(candidates.unlabelled))


def next_case(ranking: Ranking, leases: Mapping[str, Lease], now: datetime) -> NextCase | None:
    """The first of the ranking that nobody has on lease, with the reason; None where there is none."""
    held = {case for case, lease in leases.items() if lease["until"] > now.timestamp()}
    case = next((one.case for one in ranking.ranked if one.case not in held), None)
    if case is None:
        return None
    about = ranking.about(case)
    reason = about["reason"]
    return NextCase(
        case, f"{reason[0].upper()}{reason[1:]}.", about["rank"], about["of"], tuple(about["parts"].items())
    )


def scoring_progress(parts: Parts, store: Any) -> dict[str, Any]:
    """How far scoring is with the version that serves; see `progress_of`. Empty before the model was loaded."""
    served = parts.serving.served
    if served is None:
        return {}
    images, unlabelled = store.image_signatures(), store.get_unlabeled_images()
    stamp = stamp_of(served, tuple(parts.settings.task.labels))
    return progress_of(parts.scores.table(), {case: images.get(case, "") for case in unlabelled}, stamp.model)


def scoring_text(progress: Mapping[str, Any]) -> str:
    """The same in words."""
    if not progress:
        return ""
    text = f"{progress['scored']} of {progress['of']} unlabelled cases are scored by the version that serves."
    if progress["failed"]:
        named = "; ".join(f"{case}: {problem}" for case, problem in progress["examples"].items())
        text += f" {progress['failed']} could not be: {named}"
    return text


def picture_link(scores: ScoreFolder, store: Any, case: str | None) -> str | None:
    """Where the picture of the case is, from the page; None where there is none."""
    if case is None or not scores.has_picture(case, store.image_signature(case)):
        return None
    return f"cases/{quote(case, safe='')}/picture.png"


def ohif_link(store: Any, case: str | None) -> str | None:
    """Where OHIF shows the case, from the page; None for a case of a folder, and for none."""
    study = store.get_image_info(case).get("StudyInstanceUID") if case is not None else None
    if study is None:
        return None
    return f"../ohif/monai-label?{urlencode({'StudyInstanceUIDs': study, 'SeriesInstanceUIDs': case})}"


def nightly_text(nightly: NightlySettings | None) -> str:
    """The full retraining of a night in words."""
    if nightly is None:
        return "No full retraining at night is set."
    return (
        f"Every night at {nightly.at} ({nightly.time_zone}) from the {nightly.start}, "
        f"for {nightly.max_hours:g} hours at the most."
    )


def _queue(parts: Parts, store: Any, queue: QueueView, about: Mapping[str, Any], now: datetime) -> Queue:
    pending, labelled = queue.pending(), queue.labelled()
    newest = queue.newest(pending)
    saved = None if newest is None else datetime.fromtimestamp(newest, UTC)
    minutes = parts.settings.training.train_idle_minutes
    return Queue(tuple(pending), labelled, when_it_starts(about, minutes, saved, now))
