"""`cli.py score`: scores the cases of a studies folder or a PACS, alone or beside others that do the same.

Every process takes its share of the cases, by the hash of their ids, and all write into the state folder. torchrun says
who is who; without it --shard does. What is on record is not done again.
"""

import argparse
import os
from pathlib import Path

import torch

from lib.commands.shared_arguments import add_task_arguments, parts_of
from lib.commands.train import STOPPED, store_of
from lib.datastore.local import MedsaDatastore
from lib.errors import InputError
from lib.memory import keep_freed_memory
from lib.scoring.scores import ScoreFolder
from lib.scoring.survey import Surveyor
from lib.scoring.sweep import Shard, sweep
from lib.server.parts import Parts
from lib.trainers.children import stop_requested, stopping_by_signal
from lib.training.clicks_first import ClicksFirst


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_task_arguments(parser)
    parser.add_argument("--studies", required=True, metavar="DIR|URL", help="as given to the server")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="process I (from 0) of N that share the work; torchrun says it by itself",
    )


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Scores, and says each case; stopped in the middle it goes on where it was.

    Code 1 where a case could not be, 4 where it was stopped. Neither under torchrun: that would end all others because
    of it. Raises InputError where there is no image.
    """
    shard = shard_of(arguments.shard, os.environ)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    parts = parts_of(arguments, app_dir)
    store = store_of(parts, arguments.studies)
    keep_freed_memory()
    if not store.list_images():
        raise InputError("studies", arguments.studies, "a folder or a PACS with at least one image")
    with stopping_by_signal():
        while True:
            problems, is_outdated = _score_by_one_version(parts, store, shard)
            if not is_outdated or stop_requested():
                break
    if stop_requested():
        print("score: stopped; the same command goes on with what is left")
    code = STOPPED if stop_requested() else int(problems > 0)
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else code


def shard_of(text: str | None, environment: "os._Environ[str] | dict[str, str]") -> Shard:
    """What `--shard` or torchrun says; all of it where neither does. Raises InputError."""
    field, given = "shard", text
    if text is None:
        if not environment.keys() & {"RANK", "WORLD_SIZE"}:
            return Shard()
        field, given = "RANK/WORLD_SIZE", f"{environment.get('RANK')}/{environment.get('WORLD_SIZE')}"
    number, slash, count = str(given).partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(field, given, "I/N with I from 0 to N - 1, such as 0/4")
    return Shard(int(number), int(count))


def _score_by_one_version(parts: Parts, store: MedsaDatastore, shard: Shard) -> tuple[int, bool]:
    """How many cases could not be scored by the version that serves, and whether another one serves by now."""
    clicks = ClicksFirst.under(parts.state)  # of a server on the same state folder
    surveyor = Surveyor(parts.serving.current(), tuple(parts.settings.task.labels), lambda: _let_pass(clicks))
    served, problems = surveyor.served, 0

    def is_outdated() -> bool:
        return parts.serving.current().adapter_version != served.adapter_version

    for step in sweep(
        store,
        ScoreFolder(parts.scores.path, shard.number),
        surveyor,
        shard,
        lambda: stop_requested() or is_outdated(),
    ):
        problems += step.problem is not None
        print(f"{step.case}: {step.problem or 'scored'}; {step.left} left", flush=True)
    print(f"base {served.base}, version {served.adapter_version}: {problems} could not be scored", flush=True)
    return problems, is_outdated()


def _let_pass(clicks: ClicksFirst) -> None:
    clicks.wait(stop_requested)
