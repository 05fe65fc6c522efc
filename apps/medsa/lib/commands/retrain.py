"""`cli.py retrain`: a full retraining on all labels, for cron, systemd or Slurm, beside a server or without one.

Under torchrun all its workers train together.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from lib.bases import torch_device
from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.commands.train import STOPPED, describe_run, store_of
from lib.errors import AlreadyTrainingError, InputError
from lib.server.parts import Parts
from lib.trainers.children import stop_requested, stopping_by_signal
from lib.trainers.medsa_trainer import training_cases
from lib.training.nightly import full_minutes
from lib.training.record import RunRecord
from lib.training.request import RunRequest
from lib.training.run import is_under_way
from lib.training.world import World, world_of_this_process

# As documented in docs/scheduling.md.
BUSY = 3  # exit code
LOOK_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_task_arguments(parser)
    parser.add_argument("--studies", required=True, metavar="DIR|URL", help="as given to the server")
    parser.add_argument(
        "--start",
        choices=("base", "champion"),
        default="base",
        help="the weights to start from (%(default)s)",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="of training (default: 3 a label, 10 at least)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="M",
        help="minutes to wait while another training runs (none)",
    )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Trains and says what was decided: 0 published or refused, 3 another training runs, 4 stopped by a signal."""
    if arguments.minutes is not None and not 0 < arguments.minutes < 10_000:
        raise InputError("--minutes", arguments.minutes, "a number of minutes above 0 and below 10000")
    if not 0 <= arguments.wait < 10_000:
        raise InputError("--wait", arguments.wait, "a number of minutes from 0 to below 10000")
    parts = parts_of(arguments, app_dir)
    with stopping_by_signal(), world_of_this_process(torch_device(parts.settings.serving)) as world:
        code = _wait(parts, arguments.wait, world)
        if code is not None:
            return code
        try:
            record = retrain(parts, arguments.studies, arguments.start, arguments.minutes, world)
        except AlreadyTrainingError as error:
            print(f"retrain: {error}")
            return BUSY
        if world.leads:
            print(describe_run(record))
    return STOPPED if record.decision == "stopped" else 0


def retrain(parts: Parts, studies: str, start: str, minutes: float | None, world: World) -> RunRecord:
    """One full run, gate and publishing included; raises NotFoundError or TrainingError."""
    files = training_cases(store_of(parts, studies))
    request = RunRequest.parse(
        {
            "kind": "full",
            "trigger": "command line",
            "start": start,
            "minutes": full_minutes(len(files)) if minutes is None else minutes,
        }
    )
    return parts.train(files, request, stop_requested, world)


def _wait(
    parts: Parts, minutes: float, world: World, sleep: Callable[[float], None] = time.sleep
) -> int | None:
    """Until no other training runs, so many minutes at the most; the exit code where it ends here.

    Worker 0 looks; the others hear of every look, since what is silent for long is taken for dead.
    """
    waited = 0.0
    while True:
        code, free = world.told(_look(parts, waited, minutes) if world.leads else None)
        if free or code is not None:
            return code
        sleep(LOOK_S)
        waited += LOOK_S


def _look(parts: Parts, waited: float, minutes: float) -> tuple[int | None, bool]:
    """The exit code, if it ends here, and whether no other training runs."""
    if not is_under_way(parts.state):
        return None, True
    if stop_requested():
        print("retrain: stopped while another training ran")
        return STOPPED, False
    if waited >= 60.0 * minutes:
        print("retrain: another training runs; --wait MINUTES waits for its end")
        return BUSY, False
    if waited == 0.0:
        print(
            f"retrain: another training runs; waiting for its end, {minutes:g} minutes at the most",
            flush=True,
        )
    return None, False
