"""The figures of the parts that are done, kept on disk so that a run can be stopped and gone on with."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from network import Figure

Measure = Callable[[Path], list[Figure]]


class KeptParts:
    """A folder with a work folder and a file of figures for each part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def figures(self, part: str, options: Mapping[str, Any], measure: Measure) -> list[Figure]:
        """Those of an earlier run with the same `options` (as JSON); else `measure` makes them from its work folder."""
        known = self._read(part, options)
        if known is not None:
            return known
        figures = measure(self._work(part))
        content = {"options": dict(options), "figures": [asdict(figure) for figure in figures]}
        self._file(part).write_text(json.dumps(content, indent=2) + "\n")
        return figures

    def forget(self, part: str) -> None:
        """Removes what is kept of `part`, and nothing else: the folder may hold more than ours."""
        self._file(part).unlink(missing_ok=True)
        shutil.rmtree(self._work(part), ignore_errors=True)

    def _read(self, part: str, options: Mapping[str, Any]) -> list[Figure] | None:
        if not self._file(part).exists():
            return None
        content = json.loads(self._file(part).read_text())
        # A trial run must not pass for a whole one, nor a file of an older format for one of these.
        if not isinstance(content, dict) or content.get("options") != dict(options):
            return None
        return [Figure(**row) for row in content["figures"]]

    def _file(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    def _work(self, part: str) -> Path:
        return self.folder / part
