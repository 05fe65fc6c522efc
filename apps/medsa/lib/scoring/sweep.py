"""Scoring of many cases: by one process, or by several that share the work and one folder of results."""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from lib.errors import MedsaError, PacsError
from lib.infers.serving import Served
from lib.scoring.scores import CaseScore, ScoreFolder, ScoreTable, in_shard, stable_order
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

    Unlabelled ones, and between them labelled ones that nothing is known of: what is new is measured against those.
    """
    table, unlabelled = folder.table(), list(cases.get_unlabeled_images())
    due = table.due(unlabelled, served.base, served.adapter_version)
    labelled = set(cases.list_images()) - set(unlabelled)
    strange = [
        case for case in sorted(labelled, key=stable_order) if not _is_described(table, case, served.base)
    ]
    taken_in_turn = (case for pair in zip_longest(due, strange) for case in pair)
    return [case for case in taken_in_turn if case is not None]


def sweep(
    cases: Cases,
    folder: ScoreFolder,
    surveyor: Surveyor,
    shard: Shard | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Scores what is to be scored, and puts each on record as soon as it is known. A bad file is named and passed over.

    What is there already, or somebody else has done meanwhile, is not done again, so that it can be stopped and gone on
    with at any time.
    """
    shard, served = shard or Shard(), surveyor.served
    waiting = [case for case in to_score(cases, folder, served) if in_shard(case, shard.number, shard.count)]
    for place, case in enumerate(waiting, 1):
        if should_stop():
            return
        if not folder.table().is_current(case, served.base, served.adapter_version):
            yield Step(case, len(waiting) - place, _score(cases, folder, surveyor, case))


def _is_described(table: ScoreTable, case: str, base: str) -> bool:
    entry = table.cases.get(case)
    return entry is not None and entry.base == base


def _score(cases: Cases, folder: ScoreFolder, surveyor: Surveyor, case: str) -> str | None:
    served, known = surveyor.served, folder.table().cases.get(case)
    same_base = known is not None and known.base == served.base and known.embedding.size > 0
    embedding = known.embedding if known is not None and same_base else None
    try:
        found = surveyor.survey(load_volume(cases.image_path(case)), embedding)
    except PacsError as error:
        return str(error)  # another time it may be fetched: nothing is put on record
    except Exception as error:
        # Whatever it is, the cases behind this one have to be scored, and this one not for ever again. The text of an
        # error that is not ours may name paths of this computer.
        reason = str(error) if isinstance(error, MedsaError) else type(error).__name__
        log.warning("case %s is not scored: %s", case, reason, exc_info=not isinstance(error, MedsaError))
        folder.append(case, CaseScore(served.base, served.adapter_version, error=reason))
        return reason
    picture = folder.picture(case)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(found.picture)
    folder.append(case, found.score)
    return None
