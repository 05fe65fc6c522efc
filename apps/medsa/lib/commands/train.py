"""`cli.py train`: trains on the labels of a studies folder or a PACS, without a server."""

import argparse
from pathlib import Path

from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.datastore.local import MedsaDatastore
from lib.errors import NotFoundError
from lib.server.parts import Parts
from lib.server.store import is_pacs, look_once, open_store
from lib.trainers.children import stop_requested, stopping_by_signal
from lib.trainers.medsa_trainer import training_cases
from lib.training.record import RunRecord
from lib.training.request import RunRequest

STOPPED = 4  # exit code of what a signal has stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; how long it trains is the setting train_minutes."""
    add_task_arguments(parser)
    parser.add_argument("--studies", required=True, metavar="DIR|URL", help="as given to the server")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Trains and says what was decided; a refusal is a normal end, a stop by a signal has code 4."""
    record = train_on_folder(parts_of(arguments, app_dir), arguments.studies)
    print(describe_run(record))
    return STOPPED if record.decision == "stopped" else 0


def train_on_folder(parts: Parts, studies: str) -> RunRecord:
    """One training run, gate and publishing included; raises NotFoundError or TrainingError."""
    with stopping_by_signal():
        files = training_cases(store_of(parts, studies))
        return parts.train(files, RunRequest(trigger="command line"), stop_requested)


def store_of(parts: Parts, studies: str) -> MedsaDatastore:
    """The datastore of a studies folder, or of a PACS after a look at it.

    Raises NotFoundError where there is no such folder. A PACS that is away counts with what is known of it.
    """
    if is_pacs(studies):
        store = open_store(studies, parts)
        look_once(store)
        return store
    if not Path(studies).is_dir():
        raise NotFoundError("studies", studies, "a folder of studies, or the address of a PACS")
    # Not read_only: that would leave out files that were put into the folder since a server last ran on it.
    return MedsaDatastore(studies, parts.settings.task.labels, parts.serving_version)


def describe_run(record: RunRecord) -> str:
    """The outcome in a few lines."""
    left_out = sum(map(len, record.left_out))
    how = f", {left_out} left out in turn" if left_out else ""
    counts = (
        f"trained on {len(record.trained)}, validated on {len(record.validated)}{how}, {record.steps} steps"
    )
    lines = [f"{record.decision}: {'; '.join(record.reasons) or '-'}", counts]
    lines += [f"skipped {case.case_id}: {case.reason}" for case in record.skipped]
    return "\n".join(lines)
