"""What an annotator gets, and how fast, from the real server over HTTP: `python benchmarks/interaction.py --json FILE`.

`--part` picks parts (all by default). A part that is done is kept in `--out` and not done again with the same options
without `--fresh`, so that a run can be stopped. `--quick` is a trial run of minutes, whose figures say nothing.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from base import positive  # noqa: E402 (the app and the benchmarks are folders, not packages)
from base_figures import write_figures  # noqa: E402
from interaction_annotator import annotator_figures, plot  # noqa: E402
from interaction_clicks import click_figures  # noqa: E402
from interaction_cold import cold_figures  # noqa: E402
from interaction_gpu import gpu_figures  # noqa: E402
from interaction_kept import KeptParts  # noqa: E402
from interaction_load import load_figures  # noqa: E402
from interaction_memory import memory_figures  # noqa: E402
from network import Figure, described  # noqa: E402

QUICK_SHARE, QUICK_MINUTES, QUICK_CASES = 0.03, 0.1, 1
PARTS = ("click", "cold", "load", "memory", "annotator", "gpu")


@dataclass(frozen=True)
class Part:
    """How a part's figures come from its work folder, and the options that they depend on."""

    measure: Callable[[Path], list[Figure]]
    options: Mapping[str, Any]


def parts(options: argparse.Namespace) -> Mapping[str, Part]:
    """All parts, in the order of the table."""
    share = QUICK_SHARE if options.quick else 1.0
    minutes = QUICK_MINUTES if options.quick else options.minutes
    cases = QUICK_CASES if options.quick else options.cases
    data = options.data.resolve()
    return {
        "click": Part(lambda work: click_figures(work, share), {"share": share}),
        "cold": Part(lambda work: cold_figures(work, share), {"share": share}),
        "load": Part(lambda work: load_figures(work, minutes), {"minutes": minutes}),
        "memory": Part(lambda work: memory_figures(work, share), {"share": share}),
        "annotator": Part(
            lambda work: annotator_figures(data, work, cases), {"cases": cases, "data": str(data)}
        ),
        "gpu": Part(lambda work: gpu_figures(), {"cuda": torch.cuda.is_available()}),
    }


def measured(options: argparse.Namespace) -> list[Figure]:
    """The figures of the parts that were asked for, printed as soon as they are there."""
    kept, figures = KeptParts(options.out), []
    for name, part in parts(options).items():
        if name not in (options.part or PARTS):
            continue
        if options.fresh:
            kept.forget(name)
        found = kept.figures(name, part.options, part.measure)
        print(*map(described, found), sep="\n", flush=True)
        figures += found
    return figures


def options_of_this_run(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument(
        "--part", action="append", choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--minutes", type=positive_minutes, default=10.0, help="of clicking by eight clients")
    parser.add_argument("--cases", type=positive, metavar="N", help="volumes of each set (default: all)")
    parser.add_argument("--quick", action="store_true", help="a trial run; its figures say nothing")
    parser.add_argument("--fresh", action="store_true", help="measure these parts again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "interaction")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the curves as a picture")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    return parser.parse_args(arguments)


def positive_minutes(text: str) -> float:
    """A length of time."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; allowed: a number above 0")
    return minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result."""
    options = options_of_this_run(arguments)
    figures = measured(options)
    if options.plot is not None:
        plot(figures, options.plot)
    write_figures(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
