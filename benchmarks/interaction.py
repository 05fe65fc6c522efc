"""What an annotator gets, and how fast, from the real server over HTTP: `python benchmarks/interaction.py --json FILE`.

`--part` picks parts (click, load, memory, annotator, gpu; all by default). A part that is done is kept in `--out` and
not done again without `--fresh`, so that a run can be stopped. `--quick` is a trial run of minutes, whose figures say
nothing.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from base_data import MissingSetError  # noqa: E402 (the app and the benchmarks are folders, not packages)
from base_figures import figure_of, json_entry  # noqa: E402
from interaction_annotator import annotator_figures, plot  # noqa: E402
from interaction_clicks import click_figures  # noqa: E402
from interaction_gpu import gpu_figures  # noqa: E402
from interaction_load import load_figures, memory_figures  # noqa: E402
from network import Figure, described, machine  # noqa: E402

QUICK_SHARE, QUICK_MINUTES, QUICK_CASES = 0.03, 0.1, 1


def parts(options: argparse.Namespace) -> Mapping[str, Callable[[Path], list[Figure]]]:
    """Each part's figures from its work folder."""
    share = QUICK_SHARE if options.quick else 1.0
    minutes = QUICK_MINUTES if options.quick else options.minutes
    cases = QUICK_CASES if options.quick else options.cases
    return {
        "click": lambda work: click_figures(work, share),
        "load": lambda work: load_figures(work, minutes),
        "memory": lambda work: memory_figures(work, share),
        "annotator": lambda work: _or_unmeasured(lambda: annotator_figures(options.data, work, cases)),
        "gpu": lambda work: gpu_figures(),
    }


def _or_unmeasured(measure: Callable[[], list[Figure]]) -> list[Figure]:
    try:
        return measure()
    except MissingSetError as error:
        return [figure_of("simulated annotator", None, "Dice", "-", str(error))]


def measured(name: str, work: Path, measure: Callable[[Path], list[Figure]]) -> list[Figure]:
    """The figures of a part, from an earlier run where there is one."""
    kept = work / f"{name}.json"
    if kept.exists():
        return [Figure(**row) for row in json.loads(kept.read_text())]
    figures = measure(work / name)
    kept.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return figures


def options_of_this_run(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data")
    known = ("click", "load", "memory", "annotator", "gpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument(
        "--part", action="append", choices=known, metavar="NAME", help=f"of {', '.join(known)}"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of clicking by eight clients")
    parser.add_argument("--cases", type=int, metavar="N", help="volumes of each set (default: all)")
    parser.add_argument("--quick", action="store_true", help="a trial run; its figures say nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "interaction")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the curves as a picture")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result."""
    options = options_of_this_run(arguments)
    if options.fresh:
        shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    all_parts = parts(options)
    figures: list[Figure] = []
    for name in options.part or all_parts:
        found = measured(name, options.out, all_parts[name])
        print(*map(described, found), sep="\n", flush=True)
        figures += found
    if options.plot is not None:
        plot(figures, options.plot)
    if options.json is not None:
        content = {"machine": machine(), "figures": [json_entry(figure) for figure in figures]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
