"""Scoring of many cases: by one process, or by several that share the work and one folder of results."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from lib.errors import (
    MedsaError,
    NotFoundError,
    PacsError,
    PacsUnreachableError,
    UnavailableError,
    VolumeError,
)
from lib.files import part_beside
from lib.scoring.scores import CaseScore, ScoreFolder, Stamp, in_shard, stable_order
from lib.scoring.survey import Surveyor
from lib.volume import load_volume

log = logging.getLogger(__name__)

# So long a list of what is to be scored counts: meanwhile cases come, and others are labelled.
LIST_SECONDS = 60.0
# After so many cases in a row that an absent PACS could not give, the rest is left for another time.
MOST_UNREACHABLE = 3


class Cases(Protocol):
    """What is asked of a datastore. Signatures tell files of one name apart: as it is now, or was when listed."""

    def list_images(self) -> Collection[str]: ...
    def get_unlabeled_images(self) -> Collection[str]: ...
    def image_path(self, image_id: str) -> Path: ...
    def image_signature(self, image_id: str) -> str: ...
    def image_signatures(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Shard:
    """This process's place among those that share the work."""

    number: int = 0
    count: int = 1


@dataclass(frozen=True)
class Step:
    """A case that was scored, or could not be (`problem`); `left` are those that follow."""

    case: str
    left: int
    problem: str | None = None


def to_score(cases: Cases, folder: ScoreFolder, stamp: Stamp) -> list[str]:
    """The cases that have no score of `stamp` yet, in order.

    Unlabelled ones, and between them labelled ones that nothing is known of: what is new is measured against those.
    """
    table, images, unlabelled = folder.table(), cases.image_signatures(), set(cases.get_unlabeled_images())
    listed = {case: images.get(case, "") for case in cases.list_images()}
    due = table.due({case: image for case, image in listed.items() if case in unlabelled}, stamp.model)
    strange = [
        case
        for case, image in listed.items()
        if case not in unlabelled and not table.is_described(case, stamp.view, image)
    ]
    taken_in_turn = (case for pair in zip_longest(due, sorted(strange, key=stable_order)) for case in pair)
    return [case for case in taken_in_turn if case is not None]


def sweep(
    cases: Cases,
    folder: ScoreFolder,
    surveyor: Surveyor,
    shard: Shard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Step]:
    """Scores what is to be scored, and puts each on record as soon as it is known. A bad file is named and passed over.

    What is there already, or somebody else has done meanwhile, is not done again, so that it can be stopped and gone on
    with at any time. Cases that come meanwhile are scored too. A PACS that is away ends it.
    """
    shard, tried, unreachable = shard or Shard(), set[str](), 0
    while waiting := _waiting(cases, folder, surveyor.stamp, shard, tried):
        until = clock() + LIST_SECONDS
        for place, case in enumerate(waiting, 1):
            if should_stop() or unreachable == MOST_UNREACHABLE:
                return
            if clock() > until:
                break
            tried.add(case)
            if folder.table().is_current(case, surveyor.stamp.model, cases.image_signature(case)):
                continue
            try:
                problem, unreachable = _score(cases, folder, surveyor, case), 0
            except PacsUnreachableError as error:
                problem, unreachable = str(error), unreachable + 1
            yield Step(case, len(waiting) - place, problem)


def _waiting(
    cases: Cases, folder: ScoreFolder, stamp: Stamp, shard: Shard, tried: Collection[str]
) -> list[str]:
    return [
        case
        for case in to_score(cases, folder, stamp)
        if case not in tried and in_shard(case, shard.number, shard.count)
    ]


def _score(cases: Cases, folder: ScoreFolder, surveyor: Surveyor, case: str) -> str | None:
    """Puts the case on record; what was wrong, if anything. Raises PacsUnreachableError."""
    image, known = cases.image_signature(case), folder.table().cases.get(case)
    embedding = known.embedding if known is not None and known.describes(surveyor.stamp.view, image) else None
    try:
        found = surveyor.survey(load_volume(cases.image_path(case)), embedding)
    except PacsUnreachableError:
        raise
    except (PacsError, NotFoundError) as error:
        return str(error)  # another time it may be had: nothing is put on record
    except Exception as error:
        # Whatever it is, the cases behind this one have to be scored. The text of an error that is not ours may name
        # paths of this computer.
        reason = str(error) if isinstance(error, MedsaError) else type(error).__name__
        log.warning("case %s is not scored: %s", case, reason, exc_info=not isinstance(error, MedsaError))
        failure = _failure(surveyor, known, image, reason)
        if embedding is not None:
            failure = replace(failure, embedding=embedding)  # what the image is like stays known
        unreadable = isinstance(error, VolumeError) and not isinstance(error, UnavailableError)
        folder.append(case, replace(failure, unreadable=unreadable))
        return reason
    _draw(folder.picture(case), found.picture)
    folder.append(case, replace(found.score, image=image))
    return None


def _draw(target: Path, picture: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(target)  # whoever looks at it now sees the old one
    part.write_bytes(picture)
    part.replace(target)


def _failure(surveyor: Surveyor, known: CaseScore | None, image: str, reason: str) -> CaseScore:
    """What is put on record of a case that could not be scored; `known` is what was on record."""
    stamp, served = surveyor.stamp, surveyor.served
    again = known is not None and (known.model, known.image) == (stamp.model, image)
    return CaseScore(
        served.base,
        served.adapter_version,
        error=reason,
        image=image,
        model=stamp.model,
        view=stamp.view,
        tries=known.tries + 1 if known is not None and again else 1,
    )
