"""`cli.py simulate`: the simulated annotator against a running server."""

import argparse
import uuid
from pathlib import Path

import httpx
from rich.console import Console

from lib.commands.annotator import Annotator, Plan, summarise
from lib.commands.client import MedsaClient
from lib.commands.live_table import LiveTable
from lib.commands.shared_arguments import add_truth_arguments, read_case_ids, write_json
from lib.commands.truth import find_cases
from lib.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; the defaults annotate everything the server offers, with three clicks per object."""
    plan = Plan()
    parser.add_argument("--server", required=True, metavar="URL", help="e.g. http://127.0.0.1:8000")
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="named like the images")
    parser.add_argument("--cases", type=int, metavar="N", help="stop after N (default: when none is left)")
    add_truth_arguments(parser, plan.clicks)
    parser.add_argument("--label", metavar="NAME", help="click this label only; the whole truth is saved")
    parser.add_argument("--model", default=plan.model, help="infer task (%(default)s)")
    parser.add_argument("--strategy", default=plan.strategy, help="picks the next case (%(default)s)")
    parser.add_argument("--client-id", help="in whose name cases are taken (default: a new one)")
    parser.add_argument("--no-wait", action="store_true", help="go on while the server trains")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Annotates, shows how it goes; 1 when anything failed."""
    plan = Plan(
        clicks=arguments.clicks,
        cases=arguments.cases,
        only=read_case_ids(arguments.only),
        merge=arguments.merge,
        label=arguments.label,
        wait=not arguments.no_wait,
        model=arguments.model,
        strategy=arguments.strategy,
    )
    client_id = arguments.client_id or f"simulated-{uuid.uuid4().hex[:8]}"
    with _connection(arguments.server) as http, LiveTable(Console(), plan.clicks) as table:
        annotator = Annotator(MedsaClient(http, client_id), find_cases(arguments.truth), plan, table.show)
        try:
            annotator.run()
        finally:  # also after Ctrl-C: what was measured is kept
            summary = summarise(annotator.rows, plan.clicks, annotator.trainings)
            write_json(arguments.json, summary)
    table.finish(annotator.rows, summary)
    return 1 if summary["errors"] else 0


def _connection(server: str) -> httpx.Client:
    try:
        return httpx.Client(base_url=server)
    except httpx.InvalidURL as error:
        raise InputError("server", server, f"an address like http://127.0.0.1:8000 ({error})") from error
