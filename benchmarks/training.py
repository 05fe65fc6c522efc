"""What training is worth: `python benchmarks/training.py --json FILE`.

How good it gets, beside full fine-tuning and a UNet in the same CPU time; runs that add to runs, with all versions in
one matrix; kills at random moments; clicks while it trains; poisoned labels. `--part` picks parts (all by default).
Each training is kept in `--out`, so that a run of hours can be stopped and gone on with: what is there is not measured
again, and benchmarks/results/training has what docs/benchmarks.md reports. `--quick` is a trial run of minutes, whose
figures say nothing. Needs no MONAI Label, but for the part clicks.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from base import positive  # noqa: E402 (the app and the benchmarks are folders, not packages)
from base_data import MissingSetError  # noqa: E402
from base_figures import write_figures  # noqa: E402
from network import Figure, described, unmeasured  # noqa: E402
from training_curves import curve_figures, learned_figures, plot, write_whole  # noqa: E402
from training_data import STUDIES, Study  # noqa: E402
from training_kills import kill_figures  # noqa: E402
from training_runs import added_figures, poison_figures  # noqa: E402

from lib.memory import keep_freed_memory  # noqa: E402

# A training of the curves has the time of one incremental run.
CURVE_MINUTES, LEARN_MINUTES, SEEDS, KILLS = 3.0, 20.0, 3, 100
PARTS = ("learned", "curves", "added", "poison", "kills", "clicks")
QUICK_MINUTES, QUICK_KILLS = 0.2, 4
ADDED_TO = ("hippocampus_mr",)  # the sets for the parts in which runs follow runs


def parts(options: argparse.Namespace) -> Mapping[str, Callable[[], list[Figure]]]:
    """How each part is measured, in the order of the table."""
    seeds, out = (1 if options.quick else options.seeds), options.out
    learn, curve = (QUICK_MINUTES,) * 2 if options.quick else (options.learn_minutes, options.minutes)
    trials, runs = (out / ("quick" if options.quick else name) for name in ("trials", "runs"))
    run_minutes = QUICK_MINUTES if options.quick else None  # None: as the settings say
    kills, clicks = (QUICK_KILLS, 0.1) if options.quick else (KILLS, 1.0)

    def of_studies(measure: Callable[[Study], list[Figure]], names: Iterable[str] = STUDIES) -> list[Figure]:
        figures: list[Figure] = []
        for name in names:
            if options.study and name not in options.study:
                continue
            try:
                figures += measure(STUDIES[name](options.data))
            except MissingSetError as error:
                figures.append(unmeasured(f"{name}", "Dice", "-", str(error)))
        return figures

    return {
        "learned": lambda: of_studies(lambda study: learned_figures(study, trials, learn, seeds)),
        "curves": lambda: of_studies(lambda study: curve_figures(study, trials, curve, seeds)),
        "added": lambda: of_studies(lambda study: added_figures(study, runs, seeds, run_minutes), ADDED_TO),
        "poison": lambda: of_studies(lambda study: poison_figures(study, runs, seeds, run_minutes), ADDED_TO),
        "kills": lambda: _kept(runs / "kills", lambda work: kill_figures(work, kills)),
        "clicks": lambda: _kept(runs / "clicks", lambda work: _clicks(work, clicks)),
    }


def _kept(work: Path, measure: Callable[[Path], list[Figure]]) -> list[Figure]:
    """The figures of an earlier run, else those measured now."""
    file = work.with_suffix(".json")
    if not file.exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(file, [asdict(figure) for figure in measure(work)])
    return [Figure(**figure) for figure in json.loads(file.read_text())]


def _clicks(work: Path, share: float) -> list[Figure]:
    # It starts a server, for which MONAI Label is needed; all else runs where there is none.
    from training_clicks import click_figures

    return click_figures(work, share)


def _absolute(path: str) -> Path:
    return Path(path).resolve()


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
    parser.add_argument("--study", action="append", choices=STUDIES, metavar="NAME", help="one set only")
    parser.add_argument(
        "--minutes", type=float, default=CURVE_MINUTES, help="CPU minutes a training of the curves"
    )
    parser.add_argument(
        "--learn-minutes", type=float, default=LEARN_MINUTES, help="CPU minutes of the long training"
    )
    parser.add_argument("--seeds", type=positive, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="a trial run; its figures say nothing")
    # Absolute: a server is started elsewhere.
    parser.add_argument("--out", type=_absolute, default=ROOT / "benchmarks" / "out" / "training")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the learning curves as a picture")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result."""
    options = options_of_this_run(arguments)
    keep_freed_memory()
    figures: list[Figure] = []
    for name, measure in parts(options).items():
        if options.part and name not in options.part:
            continue
        found = measure()
        print(*map(described, found), sep="\n", flush=True)
        figures += found
    if options.plot is not None:
        plot(figures, STUDIES, options.plot)
    write_figures(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
