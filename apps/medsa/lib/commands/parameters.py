"""`cli.py parameters`: how many parameters are trained beside each base, part by part, and what share that is."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lib.bases import catalog
from lib.commands.shared_arguments import add_task_arguments, parts_of, write_json
from lib.errors import NotFoundError
from lib.model.base import build_sam
from lib.model.catalog import BaseEntry
from lib.model.medsa import MedSA

# Names in MedSA.adapters, without the numbers of the blocks, in the order of the table.
GROUPS = {
    "encoder.space": "encoder: space adapters",
    "encoder.depth": "encoder: depth adapters",
    "encoder.mlp": "encoder: MLP adapters",
    "encoder.relative_depth": "encoder: relative-depth tables",
    "decoder.prompt": "decoder: first adapter (HyP-Adpt)",
    "decoder.mlp": "decoder: MLP adapters",
    "decoder.image": "decoder: image adapters",
    "labels": "label tokens",
}


@dataclass(frozen=True)
class Counted:
    """Parameters beside one base: `groups` by name in MedSA.adapters, `budget` and `share` relative to `frozen`."""

    groups: dict[str, int]
    trained: int
    frozen: int
    share: float
    budget: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; the default counts for every base."""
    add_task_arguments(parser)
    parser.add_argument("--base", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Prints the table; loads no weights. Raises NotFoundError for a base that there is not."""
    settings = parts_of(arguments, app_dir).settings
    entries, labels = catalog(settings, app_dir).entries, list(settings.task.labels)
    counts = {}
    for name in arguments.base or entries:
        if name not in entries:
            raise NotFoundError("base", name, f"one of {', '.join(entries)}")
        counts[name] = count(entries[name], labels, settings.bases[name].adapter_budget)
    Console().print(as_table(counts, len(labels)))
    write_json(arguments.json, {name: asdict(counted) for name, counted in counts.items()})
    return 0


def count(entry: BaseEntry, labels: Sequence[str], budget: float) -> Counted:
    """What is trained for `labels` beside the base of `entry`, counted on modules that have shapes and no memory."""
    with torch.device("meta"):
        sam = build_sam(entry.spec)
        adapters = MedSA(sam, entry.spec, entry.dims, labels).adapters
    groups: Counter[str] = Counter()
    for name, parameter in adapters.named_parameters():
        groups[_group(name)] += parameter.numel()
    frozen = sum(parameter.numel() for parameter in sam.parameters())
    return Counted(dict(groups), groups.total(), frozen, groups.total() / frozen, budget)


def as_table(counts: dict[str, Counted], label_count: int) -> Table:
    """One column a base, one row a group; a group that no base has is left out."""
    table = Table("trained", title=f"parameters, for {label_count} label(s)")
    for name in counts:
        table.add_column(name, justify="right")
    present = {group for counted in counts.values() for group in counted.groups}
    for group, title in GROUPS.items():
        if group in present:
            table.add_row(title, *(f"{counted.groups.get(group, 0):,}" for counted in counts.values()))
    table.add_section()
    table.add_row("trained in all", *(f"{counted.trained:,}" for counted in counts.values()))
    table.add_row("frozen", *(f"{counted.frozen:,}" for counted in counts.values()))
    table.add_row("share", *(f"{counted.share:.2%}" for counted in counts.values()))
    table.add_row("budget", *(f"{counted.budget:.2%}" for counted in counts.values()))
    return table


def _group(name: str) -> str:
    """`encoder.3.space.up.bias` -> `encoder.space`, `labels.weight` -> `labels`."""
    part, second, *others = name.split(".")
    return f"{part}.{others[0]}" if second.isdigit() else part
