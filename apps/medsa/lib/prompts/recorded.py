"""The prompts that an annotator gave, as they are kept with a label, back into PromptSets."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lib.prompts.promptset import Box, PromptSet, Voxel

log = logging.getLogger(__name__)


def recorded_prompts(record: Mapping[str, Any]) -> dict[str, PromptSet]:
    """Label name ("" where none was given) -> clicks and boxes of a label version's record.

    What cannot be read is left out: it is worth a training prompt, not a failed training. A mask that was sent is not
    kept with a label, only its digest, so it is none of them.
    """
    found: dict[str, PromptSet] = {}
    for name, said in dict(record.get("prompts") or {}).items():
        try:
            prompts = _prompts(said["prompts"], name)
        except (KeyError, TypeError, ValueError, AttributeError):
            log.debug("prompts of label %s cannot be read and are left out", name)
            continue
        if prompts.positive_ijk or prompts.boxes:
            found[str(name)] = prompts
    return found


def _prompts(said: Mapping[str, Any], name: str) -> PromptSet:
    return PromptSet(
        tuple(_voxel(point) for point in said["positive_ijk"]),
        tuple(_voxel(point) for point in said["negative_ijk"]),
        tuple(Box(_voxel(box["start_ijk"]), _voxel(box["stop_ijk"])) for box in said["boxes"]),
        name or None,
    )


def _voxel(point: Sequence[int]) -> Voxel:
    i, j, k = (int(value) for value in point)
    return i, j, k
