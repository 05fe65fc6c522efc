"""The figures of the small base by itself, on real slices it has never seen: `python benchmarks/base.py --json FILE`.

Dice of single slices on the voxel grid, from a simulated user's clicks (base_user.py) or an exact box, for the base
without any trained adapter; beside it a random walker from the same clicks and boxes (base_walker.py). The data sets
(base_data.py) are looked for in $MEDSA_DATA, else in ../shared/data beside the checkout.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

import torch

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "apps" / "medsa"
sys.path[:0] = [str(APP), str(ROOT / "benchmarks")]

from base_data import SETS, Member, MissingSetError, evenly, load_slices  # noqa: E402 (folders, not packages)
from base_figures import (  # noqa: E402
    AT_CLICKS,
    PROMPTS,
    Found,
    all_figures,
    calibration,
    calibration_table,
    dice_row,
    json_entry,
    mean_of,
    table,
)
from base_user import Feedback, Network, Record, annotate  # noqa: E402
from base_walker import walker_dice  # noqa: E402
from network import Figure, described, judged, machine, unmeasured  # noqa: E402

from lib.bases import choose_base, encoder_precision  # noqa: E402
from lib.memory import keep_freed_memory  # noqa: E402
from lib.model.base import file_sha256  # noqa: E402
from lib.model.catalog import build_model  # noqa: E402
from lib.model.medsa import MedSA  # noqa: E402
from lib.settings import load_settings  # noqa: E402

TIMED_THREADS, TIMED_SLICES, WARM_UP = 2, 20, 3

# --- measuring ---


def measure_set(model: MedSA, members: Iterable[Member], feedback: Feedback, baseline_slices: int) -> Found:
    """The user on every object slice of `members`, and the walker on some of the slices."""
    records: list[Record] = []
    for member in members:
        slices = load_slices(member, model.spec.image_size, model.spec.mask_size)
        if slices.targets:
            records += annotate(Network(model, slices), slices.targets, feedback)
    shared = evenly(records, baseline_slices)
    dices = [walker_dice(record, AT_CLICKS) for record in shared]
    walker = {prompt: mean_of([dice[prompt] for dice in dices]) for prompt in PROMPTS}
    return Found(records, walker, dice_row(shared), len(shared))


@torch.inference_mode()
def encode_milliseconds(model: MedSA) -> float:
    """Median time of one plane by itself, on two threads."""
    planes = torch.rand(1, 3, model.spec.image_size, model.spec.image_size) * 255
    threads = torch.get_num_threads()
    torch.set_num_threads(TIMED_THREADS)
    try:
        times = []
        for _ in range(WARM_UP + TIMED_SLICES):
            started = time.perf_counter()
            model.encode(planes)
            times.append((time.perf_counter() - started) * 1e3)
    finally:
        torch.set_num_threads(threads)
    return median(times[WARM_UP:])


def model_figures(model: MedSA, weights: Path) -> list[Figure]:
    """Size and speed."""
    parameters = sum(parameter.numel() for parameter in model.sam.parameters()) / 1e6
    title, bar = f"encoding of one slice, bfloat16, {TIMED_THREADS} threads, median", "<= 60"
    if model.precision == "bfloat16":
        encoding = judged(title, encode_milliseconds(model), "ms", bar)
    else:
        encoding = unmeasured(title, "ms", bar, "this machine has no bfloat16 in hardware")
    return [
        judged("parameters", parameters, "millions", "<= 12"),
        judged("size of the weights' file", weights.stat().st_size / 1e6, "MB", "<= 25"),
        encoding,
    ]


# --- the run ---


def load_model(weights: Path | None) -> tuple[MedSA, Path]:
    """The base, shipped or in `weights`, without trained adapters, and its file; on the CPU."""
    conf = {"base": "vit_t", "device": "cpu"}
    if weights is not None:
        conf["checkpoint"] = str(weights.resolve())
    settings = load_settings(APP / "configs", conf)
    choice = choose_base(settings, APP, None)
    model, _ = build_model(choice, ("object",), encoder_precision(settings.serving))
    return model, choice.path


def measure_all(model: MedSA, options: argparse.Namespace) -> tuple[dict[str, Found], list[str]]:
    """Every set that was asked for and is there, and the names of those left out."""
    found: dict[str, Found] = {}
    for name in SETS:
        if name not in options.sets:
            continue
        started = time.perf_counter()
        try:
            members = SETS[name](options.data)
            members = evenly(members, options.cases or len(members))
            found[name] = measure_set(model, members, options.feedback, options.baseline_slices)
        except MissingSetError as error:
            print(f"{name} is missing: {error}", flush=True)
            continue
        seconds = time.perf_counter() - started
        count = len(found[name].records)
        print(f"{name}: {len(members)} volumes, {count} object slices, {seconds:.0f} s", flush=True)
    return found, [name for name in SETS if name not in found]


def options_of_this_run(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("MEDSA_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="instead of the weights that are shipped"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), metavar="NAME")
    parser.add_argument("--cases", type=positive, metavar="N", help="volumes of each set (default: all)")
    parser.add_argument(
        "--baseline-slices", type=positive, default=40, metavar="N", help="of each set, at most"
    )
    parser.add_argument("--feedback", choices=get_args(Feedback), default="previous")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of torch")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """An option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; allowed: a whole number above 0")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; a missed bar is a result, no set at all an error."""
    options = options_of_this_run(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `make serve` has it
    model, weights = load_model(options.weights)
    figures = model_figures(model, weights)
    found, missing = measure_all(model, options)
    lacking = [f"without {', '.join(missing)}"] if missing else []
    if options.cases:
        lacking.append(f"on {options.cases} volumes a set")
    figures = [*all_figures(found, "; ".join(lacking)), *figures]
    bins = calibration(record for entry in found.values() for record in entry.records)
    print(table(found), calibration_table(bins), "\n".join(map(described, figures)), sep="\n\n")
    if lacking:
        print(f"\nmeans over sets are not judged: {'; '.join(lacking)}")
    if options.json is not None:
        content = {
            "machine": machine(),
            "options": {
                "weights": weights.name,
                "sha256": file_sha256(weights),
                "feedback": options.feedback,
                "cases": options.cases,
                "baseline_slices": options.baseline_slices,
            },
            "missing": missing,
            "figures": [json_entry(figure) for figure in figures],
            "calibration": bins,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(not found)


if __name__ == "__main__":
    sys.exit(main())
