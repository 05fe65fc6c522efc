"""Every label ever saved, one file and one record a version, beside the studies.

<studies>/.medsa/history/<image id>/0001.nii.gz and 0001.json. Nothing here is ever changed or removed; the
label under <studies>/labels is a copy of one version. Callers hold the datastore's lock around `commit`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.files import flush, part_beside, write_json

FOLDER = Path(".medsa") / "history"


class LabelHistory:
    """The versions of every image's labels under one studies folder."""

    def __init__(self, studies: Path) -> None:
        self._root = studies / FOLDER

    def stage(self, image_id: str, suffix: str) -> Path:
        """A free name for a file that `commit` will make a version."""
        folder = self._root / image_id
        folder.mkdir(parents=True, exist_ok=True)
        # The suffix stays last: it tells the writers which format to write.
        staged = part_beside(folder / "new")
        return staged.with_name(staged.name + suffix)

    def commit(self, image_id: str, staged: Path, suffix: str, record: Mapping[str, Any]) -> int:
        """Makes the staged file the next version of `image_id` and returns its number, from 1."""
        version = self._last_number(image_id) + 1
        target = staged.with_name(f"{version:04d}{suffix}")
        staged.rename(target)
        flush(target.parent)
        own = {"version": version, "image": image_id, "file": target.name}
        write_json(target.with_name(f"{version:04d}.json"), own | dict(record))
        return version

    def versions(self, image_id: str) -> list[dict[str, Any]]:
        """The records of `image_id`, oldest first."""
        return [json.loads(path.read_text()) for path in sorted((self._root / image_id).glob("[0-9]*.json"))]

    def file_of(self, record: Mapping[str, Any]) -> Path:
        """The label of one of `versions`."""
        return self._root / str(record["image"]) / str(record["file"])

    def holds(self, image_id: str, sha256: str) -> bool:
        """Whether a version of `image_id` has this content."""
        return any(record.get("sha256") == sha256 for record in self.versions(image_id))

    def _last_number(self, image_id: str) -> int:
        names = [path.name.split(".")[0] for path in (self._root / image_id).glob("[0-9]*.*")]
        return max((int(name) for name in names if name.isdigit()), default=0)
