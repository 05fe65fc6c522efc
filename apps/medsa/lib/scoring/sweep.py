"""Scoring of many cases: by one process, or by several that share the work and one folder of results."""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lib.errors import MedsaError, PacsError
from lib.infers.serving import Served
from lib.scoring.scores import CaseScore, ScoreFolder, in_shard
from lib.scoring.survey import Surveyor
from lib.volume import load_volume

log = logging.getLogger(__name__)


class Cases(Protocol):
    """What is asked of a datastore."""

    def list_images(self) -> Collection[str]: ...
    def get_unlabeled_images(self) -> Collection[str]: ...
    def image_path(self, image_id: str) -> Path: ...


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


def to_score(cases: Cases, folder: ScoreFolder, served: Served) -> list[str]:
    """The cases that `served` has not scored yet, in order.

    Unlabelled ones; then labelled ones that nothing is known of, since what is new is measured against them.
    """
    table, unlabelled = folder.table(), list(cases.get_unlabeled_images())
    due = table.due(unlabelled, served.base, served.adapter_version)
    labelled = set(cases.list_images()) - set(unlabelled)
    return due + table.due(labelled - table.cases.keys(), served.base, served.adapter_version)


def sweep(
    cases: Cases,
    folder: ScoreFolder,
    surveyor: Surveyor,
    shard: Shard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Scores what is to be scored, and puts each on record as soon as it is known. A bad file is named and passed over.

    What is there already is not done again, so that it can be stopped and gone on with at any time.
    """
    shard = shard or Shard()
    waiting = [
        case for case in to_score(cases, folder, surveyor.served) if in_shard(case, shard.number, shard.count)
    ]
    for place, case in enumerate(waiting, 1):
        if should_stop():
            return
        yield Step(case, len(waiting) - place, _score(cases, folder, surveyor, case))


def _score(cases: Cases, folder: ScoreFolder, surveyor: Surveyor, case: str) -> str | None:
    served = surveyor.served
    try:
        found = surveyor.survey(load_volume(cases.image_path(case)))
    except PacsError as error:
        return str(error)  # another time it may be fetched: nothing is put on record
    except (MedsaError, OSError) as error:
        log.warning("case %s is not scored: %s", case, error)
        folder.append(case, CaseScore(served.base, served.adapter_version, error=str(error)))
        return str(error)
    picture = folder.picture(case)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(found.picture)
    folder.append(case, found.score)
    return None
