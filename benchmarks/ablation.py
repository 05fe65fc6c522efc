"""What the parts of the network bring: the arms of the decoder's first adapter, with and without the depth branch.

`python benchmarks/ablation.py --json FILE --work DIR`. Every variant is trained from the base, with the same seeds,
cases and number of steps. The cases were chosen by name before anything was run, and nothing was ever tuned on those
tested. What DIR holds is not trained again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path[:0] = [str(APP), str(ROOT / "benchmarks")]

import torch  # noqa: E402 (the app is a folder, not an installed package)
from loop import NO_BAR, DataSet, Figure, cardiac, hippocampus, machine  # noqa: E402

from lib.bases import choose_base, encoder_precision  # noqa: E402
from lib.commands.truth import load_truth  # noqa: E402
from lib.embeddings import EmbeddingCache  # noqa: E402
from lib.evaluation.bootstrap import paired_bootstrap  # noqa: E402
from lib.evaluation.metrics import volume_dice  # noqa: E402
from lib.evaluation.simulated_user import annotate  # noqa: E402
from lib.memory import keep_freed_memory  # noqa: E402
from lib.model.catalog import build_model  # noqa: E402
from lib.model.medsa import MedSA  # noqa: E402
from lib.predictor import Predictor  # noqa: E402
from lib.settings import load_settings  # noqa: E402
from lib.training.cases import Case  # noqa: E402
from lib.training.loop import TrainOptions, train  # noqa: E402
from lib.training.slabs import prepare_case  # noqa: E402
from lib.training.viewpoint import Viewpoint  # noqa: E402
from lib.transforms.geometry import slice_axis  # noqa: E402
from lib.volume import load_volume  # noqa: E402

ARMS, DEPTHS, SEEDS = ("none", "add", "concat", "hyper"), (1, 4), (0, 1, 2)
REFERENCE = ("hyper", 4)  # what is shipped: the others are compared with it
STEPS, TRAINED_CASES, TESTED_CASES = 80, 12, 12
SETS = {"hippocampus_mr": hippocampus, "cardiac_lv_mr": cardiac}
MEASURES = {"one_click": "volume Dice after 1 click", "automatic": "volume Dice from the label's token alone"}
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Run:
    """One training: a data set, a variant and a seed."""

    data: str
    arm: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        """Its file's name in the work folder."""
        return f"{self.data}-{self.arm}-{self.depth}-{self.seed}-{STEPS}.json"


def all_runs() -> list[Run]:
    """Seed by seed, so that a run that was stopped has whole comparisons."""
    return [
        Run(data, arm, depth, seed) for seed, data, depth, arm in itertools.product(SEEDS, SETS, DEPTHS, ARMS)
    ]


def figures(data: Path, work: Path | None = None) -> list[Figure]:
    """Trains what `work` does not hold, on all cores, and compares; raises RuntimeError when a run fails."""
    if work is None:
        with tempfile.TemporaryDirectory() as temporary:
            return figures(data, Path(temporary))
    work.mkdir(parents=True, exist_ok=True)
    train_all(data, work)
    return [figure for name in SETS for measure in MEASURES for figure in table(work, name, measure)]


def train_all(data: Path, work: Path) -> None:
    """One process a core, one thread each: runs are independent, and small products gain little from two threads."""
    shares = os.cpu_count() or 1
    command = [sys.executable, __file__, "--data", str(data), "--work", str(work), "--share"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([*command, str(share), str(shares)], env=threads) for share in range(shares)]
    codes = [child.wait() for child in children]  # of all: a failed share must not leave the others running
    if any(codes):
        raise RuntimeError("a run of the ablation failed; its reason is above")


def train_share(data: Path, work: Path, share: int, shares: int) -> None:
    """Every `shares`-th run that has no result yet."""
    keep_freed_memory()
    torch.set_num_threads(1)
    for run in all_runs()[share::shares]:
        target = work / run.name
        if not target.exists():
            content = execute(run, data)
            part = target.with_suffix(".part")
            part.write_text(json.dumps(content) + "\n")
            part.replace(target)
            print(
                f"{run.name}: {mean(content['one_click']):.3f} {mean(content['automatic']):.3f}", flush=True
            )


def execute(run: Run, data: Path) -> dict[str, list[float]]:
    """Trains and tests one variant: Dice by measure, one value a case."""
    chosen = SETS[run.data](data)
    settings = load_settings(APP / "configs", {"task": chosen.task, "base": "vit_t", "device": "cpu"})
    task = settings.task
    view = Viewpoint({chosen.label: 1}, task.intensity, task.slice_axis)
    choice = choose_base(settings, APP, None)
    dims = replace(choice.entry.dims, prompt_arm=run.arm, depth=run.depth)
    choice = replace(choice, entry=replace(choice.entry, dims=dims))
    model, _ = build_model(choice, [chosen.label], encoder_precision(settings.serving))
    spec = model.spec
    cases = load_cases(chosen, chosen.annotate[:TRAINED_CASES])
    prepared = [prepare_case(case, view, spec.image_size, spec.mask_size) for case in cases]
    training = settings.training
    options = TrainOptions(
        STEPS, training.learning_rate, training.batch_slices, training.prompts_per_slice, run.seed
    )
    # The clock counts steps: every variant gets the same number, however long they take.
    train(model, prepared, options, clock=itertools.count().__next__)
    return score(model, load_cases(chosen, chosen.test[:TESTED_CASES]), view)


def load_cases(chosen: DataSet, names: Sequence[str]) -> list[Case]:
    """The cases with all that is labelled as one structure."""
    return [
        Case(
            name,
            load_volume(next((chosen.folder / "images").glob(f"{name}.nii*"))),
            load_truth(
                next((chosen.folder / "labels").glob(f"{name}.nii*")), {chosen.label: 1}, chosen.label
            ).label,
        )
        for name in names
    ]


def score(model: MedSA, cases: Sequence[Case], view: Viewpoint) -> dict[str, list[float]]:
    """Dice after one simulated click, and without any."""
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    label = next(iter(view.labels))
    for case in cases:
        predictor = Predictor(model, "ablation", view.intensity, view.slice_axis, EmbeddingCache(CACHE_BYTES))
        truth, axis = case.label > 0, slice_axis(case.volume.spacing_mm, view.slice_axis)
        clicked = annotate(
            lambda prompts, predictor=predictor, case=case: predictor.predict(case.volume, prompts).mask,
            truth,
            1,
            axis,
            case.volume.spacing_mm,
            label,
        )
        found["one_click"].append(clicked[0].dice)
        found["automatic"].append(volume_dice(predictor.automatic_mask(case.volume, label) > 0, truth))
    return found


def table(work: Path, data: str, measure: str) -> list[Figure]:
    """The mean of each variant over seeds and cases, and its difference from what is shipped with the interval.

    Cases are what varies in use: their values are means over the seeds, and the bootstrap draws cases.
    """
    shipped = by_case(work, data, *REFERENCE, measure)
    rows: list[Figure] = []
    for depth, arm in itertools.product(DEPTHS, ARMS):
        values = by_case(work, data, arm, depth, measure)
        name = f"{data}: {arm}, {'with' if depth > 1 else 'without'} depth branch: {MEASURES[measure]}"
        rows.append(Figure(name, mean(values), "Dice", NO_BAR, True))
        if (arm, depth) != REFERENCE:
            found = paired_bootstrap(shipped, values, seed=0)
            rows.append(Figure(f"{name}, minus the shipped variant's", found.mean, "Dice", NO_BAR, True))
            rows.append(Figure(f"{name}, low end of 95 %", found.low, "Dice", NO_BAR, True))
            rows.append(Figure(f"{name}, high end of 95 %", found.high, "Dice", NO_BAR, True))
    return rows


def by_case(work: Path, data: str, arm: str, depth: int, measure: str) -> list[float]:
    """One value a case: the mean over the seeds."""
    files = [work / Run(data, arm, depth, seed).name for seed in SEEDS]
    return [mean(values) for values in zip(*(json.loads(f.read_text())[measure] for f in files), strict=True)]


def options_of_this_run() -> argparse.Namespace:
    """What the command line says."""
    data = os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of the data sets")
    parser.add_argument("--work", type=Path, metavar="DIR", help="kept, and gone on with")
    parser.add_argument("--share", nargs=2, type=int, metavar=("I", "N"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Trains, prints and writes."""
    options = options_of_this_run()
    if options.share is not None:
        train_share(options.data, options.work, *options.share)
        return 0
    found = figures(options.data, options.work)
    for figure in found:
        print(f"{figure.name}: {figure.value:+.3f} {figure.unit}")
    if options.json is not None:
        content = {"machine": machine(), "figures": [asdict(figure) for figure in found]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
