"""`cli.py retrain`: a full retraining on all labels, for cron, systemd or Slurm, beside a server or without one.

Under torchrun all its workers train together; the first one says what became of it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lib.bases import torch_device
from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.commands.train import STOPPED, describe_run, store_of
from lib.errors import AlreadyTrainingError, InputError
from lib.files import file_digest, write_text
from lib.server.parts import Parts
from lib.trainers.children import stop_requested, stopping_by_signal
from lib.trainers.medsa_trainer import training_cases
from lib.training.cases import CaseFile
from lib.training.nightly import full_minutes, is_news, minutes_of
from lib.training.request import RunRequest
from lib.training.run import is_under_way
from lib.training.world import World, world_of_this_process

# As documented in docs/scheduling.md.
FAILED, BUSY = 2, 3  # exit codes
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
        "--max-hours", type=float, metavar="H", help="judging included; training takes what fits (no end)"
    )
    parser.add_argument(
        "--if-new",
        action="store_true",
        help="only where there are other labels than at the last full training",
    )
    parser.add_argument("--status-file", type=Path, metavar="FILE", help="where the exit code is written too")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="M",
        help="minutes to wait while another training runs (none)",
    )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Trains and says what was decided: 0 published or refused, 3 another training runs, 4 stopped by a signal.

    Of several workers all end with 0 then: one that ended otherwise would have torchrun end the others.
    """
    begun = datetime.now(UTC)
    _check(arguments)
    parts = parts_of(arguments, app_dir)
    with stopping_by_signal(), world_of_this_process(torch_device(parts.settings.serving)) as world:
        # At first as if it fails, however it does: what an earlier call left there is not this one's.
        _note(arguments.status_file, FAILED, world)
        code = _run(parts, arguments, world, begun)
        _note(arguments.status_file, code, world)
    return code if world.size == 1 else 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.minutes is not None and not 0 < arguments.minutes < 10_000:
        raise InputError("--minutes", arguments.minutes, "a number of minutes above 0 and below 10000")
    if not 0 <= arguments.wait < 10_000:
        raise InputError("--wait", arguments.wait, "a number of minutes from 0 to below 10000")
    hours = arguments.max_hours
    if hours is not None and not 0 < hours < 1000:
        raise InputError("--max-hours", hours, "a number of hours above 0 and below 1000")


def _run(parts: Parts, arguments: argparse.Namespace, world: World, begun: datetime) -> int:
    code = _wait(parts, arguments.wait, world)
    if code is not None:
        return code
    files = training_cases(store_of(parts, arguments.studies))
    request = request_of(arguments, len(files), begun, datetime.now(UTC))
    if arguments.if_new and not world.told(_has_news(parts, files, request) if world.leads else None):
        if world.leads:
            print("retrain: the labels are those of the last full training; nothing is to be done")
        return 0
    try:
        record = parts.train(files, request, stop_requested, world)
    except AlreadyTrainingError as error:
        print(f"retrain: {error}")
        return BUSY
    if world.leads:
        print(describe_run(record))
    return STOPPED if record.decision == "stopped" else 0


def request_of(arguments: argparse.Namespace, labels: int, begun: datetime, now: datetime) -> RunRequest:
    """A full run; of `--max-hours`, which count from `begun`, it gets what is left `now`."""
    minutes, until = full_minutes(labels), None
    if arguments.max_hours is not None:
        until = begun + timedelta(hours=arguments.max_hours)
        minutes = minutes_of(max(until - now, timedelta()), labels)
        if minutes <= 0.0:
            raise InputError("--max-hours", arguments.max_hours, "more than what --wait took")
    if arguments.minutes is not None:
        minutes = arguments.minutes
    return RunRequest("full", "command line", arguments.start, minutes, until)


def _has_news(parts: Parts, files: Sequence[CaseFile], request: RunRequest) -> bool:
    labels = {file.case_id: file_digest(file.label) for file in files if file.label.is_file()}
    return is_news(labels, parts.releases.records(), request.minutes or 0.0)


def _note(file: Path | None, code: int, world: World) -> None:
    if file is not None and world.leads:
        write_text(file, f"{code}\n")


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
