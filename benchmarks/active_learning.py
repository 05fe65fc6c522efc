"""What the choice of the next case is worth: `python benchmarks/active_learning.py --json FILE`.

Simulated labelling of two real sets by every strategy, paired by seed; what scoring costs; offers of the real server
with 10,000 cases. `--part` picks parts (all by default). Every round is kept in `--out`, so that a run of a night can
be stopped and gone on with; benchmarks/results/active_learning has what docs/benchmarks.md reports. Only whole runs
count, and of those the seeds that all strategies have. `--quick` is a trial run of minutes, whose figures say nothing.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "apps" / "medsa"), str(ROOT / "benchmarks")]

from active_learning_data import POOLS, PoolStudy  # noqa: E402 (the app and the benchmarks are folders, not packages)
from active_learning_figures import Runs, penalty_matrix, plot, study_figures  # noqa: E402
from active_learning_rounds import EVERYTHING, Run, Simulation  # noqa: E402
from base import positive  # noqa: E402
from base_data import MissingSetError  # noqa: E402
from base_figures import write_figures  # noqa: E402
from network import Figure, described, unmeasured  # noqa: E402

from lib.activelearning.ranking import STRATEGIES  # noqa: E402
from lib.memory import keep_freed_memory  # noqa: E402

PARTS = ("simulate", "scoring", "store")
SEEDS, STEPS = 5, 40
# In percent of the pool; the rest is tested in its place, at most so many.
DEVELOPMENT_POOL, DEVELOPMENT_LABELS, DEVELOPMENT_TESTED = 58, 14, 24
QUICK_COUNTS, QUICK_POOL, QUICK_TESTED, QUICK_STEPS = (2, 4), 8, 3, 2


def simulations(options: argparse.Namespace) -> tuple[list[Simulation], list[Figure]]:
    """One for each set that is there, and an entry for each that is not."""
    found, missing = [], []
    for name, pool in POOLS.items():
        if options.study and name not in options.study:
            continue
        try:
            study = pool(options.data)
        except MissingSetError as error:
            missing.append(unmeasured(name, "Dice", "-", str(error)))
            continue
        steps, out = options.steps, options.out
        if options.development:
            study, out = _development(study), out / "development"
        if options.quick:
            study, steps, out = _quick(study), QUICK_STEPS, out / "quick"
        found.append(Simulation(study, steps, out))
    return found, missing


def simulate(options: argparse.Namespace) -> list[Figure]:
    """Makes what runs are missing, seed by seed, and sums up those that are whole."""
    made, figures = simulations(options)
    seeds = range(1 if options.quick else options.seeds)
    for simulation in made:
        for seed in () if options.summary else seeds:
            for strategy in (*options.strategy, *((EVERYTHING,) if options.everything else ())):
                simulation.run(strategy, seed)
    shown: dict[str, Runs] = {}
    for simulation in made:
        runs, full = whole_runs(simulation, seeds)
        if runs:
            shown[simulation.study.name] = runs
            figures += study_figures(simulation.study.name, runs, full)
            print(f"{simulation.study.name}: beaten for sure [loser][winner]: {penalty_matrix(runs)}")
    if options.plot is not None and shown:
        plot(shown, options.plot)
    return figures


def whole_runs(simulation: Simulation, seeds: Sequence[int]) -> tuple[Runs, list[Run]]:
    """The runs that are complete, of the seeds that every strategy with any has; and those with the whole pool."""
    rounds = len(simulation.study.counts)
    kept = {name: [simulation.kept(name, seed) for seed in seeds] for name in STRATEGIES}
    whole: Mapping[str, list[Run]] = {
        name: [run for run in runs if len(run.rounds) == rounds] for name, runs in kept.items()
    }
    common = set(seeds)
    for runs in whole.values():
        if runs:
            common &= {run.seed for run in runs}
    full = [simulation.kept(EVERYTHING, seed) for seed in seeds]
    return (
        {
            name: [run for run in runs if run.seed in common]
            for name, runs in whole.items()
            if runs and common
        },
        [run for run in full if run.rounds],
    )


def serving(options: argparse.Namespace, part: str) -> list[Figure]:
    """The parts that measure time. They need MONAI Label, which simulated labelling does not."""
    from active_learning_serving import scoring_figures, store_figures

    if part == "store":
        return store_figures(options.out / "store")
    try:
        return scoring_figures(POOLS["hippocampus_mr"](options.data), options.out / "scoring")
    except MissingSetError as error:
        return [unmeasured("scoring a case that is encoded", "s", "<= 0.3", str(error))]


def _quick(study: PoolStudy) -> PoolStudy:
    return replace(
        study,
        pool=study.pool[:QUICK_POOL],
        tested=study.tested[:QUICK_TESTED],
        counts=QUICK_COUNTS,
        tested_counts=QUICK_COUNTS,
    )


def _development(study: PoolStudy) -> PoolStudy:
    """Of the pool alone: cases of it are tested, none that the benchmark tests. By patients, which are in order."""
    half = len(study.pool) * DEVELOPMENT_POOL // 100
    counts = tuple(count for count in study.counts if count <= DEVELOPMENT_LABELS)
    return replace(
        study,
        pool=study.pool[:half],
        tested=study.pool[half:][:DEVELOPMENT_TESTED],
        counts=counts,
        tested_counts=counts,
    )


def options_of_this_run(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument("--part", action="append", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--study", action="append", choices=POOLS, help="one set only")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="these only")
    parser.add_argument("--seeds", type=positive, default=SEEDS)
    parser.add_argument("--steps", type=positive, default=STEPS, help="of training a round (%(default)s)")
    parser.add_argument(
        "--development", action="store_true", help="on the pools alone, to choose between strategies by"
    )
    parser.add_argument("--quick", action="store_true", help="a trial run; its figures say nothing")
    parser.add_argument("--summary", action="store_true", help="sum up what is kept, and run nothing")
    parser.add_argument(
        "--no-everything", dest="everything", action="store_false", help="not with the whole pool labelled"
    )
    parser.add_argument(
        "--out",
        type=lambda path: Path(path).resolve(),
        default=ROOT / "benchmarks" / "out" / "active_learning",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the learning curves as a picture")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    options = parser.parse_args(arguments)
    options.strategy = options.strategy or list(STRATEGIES)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result."""
    options = options_of_this_run(arguments)
    keep_freed_memory()
    figures: list[Figure] = []
    for part in options.part or PARTS:
        found = simulate(options) if part == "simulate" else serving(options, part)
        print(*map(described, found), sep="\n", flush=True)
        figures += found
    write_figures(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
