"""`progress.json`: how the current or last training run stands, for readers in other processes.

Fields as the viewers read them from MONAI Label's `train_stats`: `epoch` of `total_epochs` (percent of the time
budget), `best_metric` (mean Dice of the version that serves, null before it was measured), `total_time`
("0:03:00"). Beside them `status`, `loss` (smoothed), `version` (the serving one), `start_ts` (seconds since
1970), `pid` and `running`. A killed run leaves `running` true: whether one still runs, the lock file says.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lib.files import read_json, write_json

NAME = "progress.json"
TOTAL_EPOCHS = 100


@dataclass
class ProgressFile:
    """Writes the file in `state` for one run; `now` is asked for the time."""

    state: Path
    pid: int
    started: datetime
    version: int
    best_metric: float | None = None
    loss: float | None = None

    def write(self, status: str, fraction: float, now: datetime, *, running: bool = True) -> None:
        """Replaces the file; `fraction` is the part of the time budget that is over, 0..1."""
        write_json(
            self.state / NAME,
            {
                "epoch": round(TOTAL_EPOCHS * fraction),
                "total_epochs": TOTAL_EPOCHS,
                "best_metric": self.best_metric,
                "total_time": str(timedelta(seconds=int((now - self.started).total_seconds()))),
                "start_ts": int(self.started.timestamp()),
                "status": status,
                "version": self.version,
                "loss": self.loss,
                "running": running,
                "pid": self.pid,
            },
        )


def read_progress(state: Path) -> dict[str, Any]:
    """The last progress written under `state`; empty when there was no run."""
    return read_json(state / NAME)
