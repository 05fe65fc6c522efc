"""`cli.py pretrain`: trains the project's own small base on made images."""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from lib.bases import catalog
from lib.errors import InputError
from lib.pretraining.loop import PretrainConfig, Progress, Stage, pretrain
from lib.settings import PretrainingSettings, load_pretraining, load_settings

OUT = Path("runs/vit_t")
CONFIG = "pretraining.yaml"
OVERRIDES = ("learning_rate", "decay_steps", "seed", "workers", "images", "start")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; the recipe itself stands in the config, and some of its keys can be overridden."""
    parser.add_argument(
        "--out", type=Path, default=OUT, help=f"folder for checkpoint, weights and curves (default {OUT})"
    )
    parser.add_argument("--config", type=Path, help=f"the recipe (default configs/{CONFIG})")
    parser.add_argument(
        "--steps", type=int, nargs="+", metavar="N", help="steps of each stage, instead of the recipe's"
    )
    for key in OVERRIDES:
        parser.add_argument(f"--{key.replace('_', '-')}", help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training itself (default 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Trains, or goes on with a run that was stopped, and says where the weights are."""
    torch.set_num_threads(arguments.threads)
    spec = catalog(load_settings(app_dir / "configs", {}), app_dir).entries["vit_t"].spec
    recipe = load_pretraining(arguments.config or app_dir / "configs" / CONFIG, _overrides(arguments))
    config = _config(recipe, arguments.steps)
    if config.stages[-1].image_size != spec.image_size:
        sizes = [stage.image_size for stage in config.stages]
        raise InputError("stages: image sizes", sizes, f"the last is {spec.name}'s own, {spec.image_size}")
    with ExitStack() as stack:
        path = pretrain(
            spec, config, arguments.out, arguments.device, _reporter(arguments.out / "tensorboard", stack)
        )
    print(f"weights: {path}")
    return 0


def _overrides(arguments: argparse.Namespace) -> dict[str, str]:
    return {key: value for key in OVERRIDES if (value := getattr(arguments, key)) is not None}


def _config(recipe: PretrainingSettings, steps: list[int] | None) -> PretrainConfig:
    values = recipe.model_dump()
    stages = [Stage(**stage) for stage in values.pop("stages")]
    if steps is not None and (len(steps) != len(stages) or min(steps) < 1):
        raise InputError("--steps", steps, f"{len(stages)} numbers above 0, one for each stage")
    if steps is not None:
        stages = [Stage(stage.image_size, count) for stage, count in zip(stages, steps, strict=True)]
    return PretrainConfig(stages=tuple(stages), **values)


def _reporter(folder: Path, stack: ExitStack) -> Callable[[Progress], None]:
    """Writes the curves to `folder`, until `stack` closes, and prints a line."""
    writer: SummaryWriter | None = None

    def report(progress: Progress) -> None:
        nonlocal writer
        if writer is None:
            # A run that goes on repeats the steps since its last checkpoint: their first curves are dropped.
            writer = stack.enter_context(SummaryWriter(str(folder), purge_step=progress.step))
        writer.add_scalar("loss", progress.loss, progress.step)
        writer.add_scalar("learning_rate", progress.learning_rate, progress.step)
        writer.add_scalar("image_size", progress.image_size, progress.step)
        for index, dice in enumerate(progress.dice_by_round):
            writer.add_scalar(f"dice/prompt_{index + 1}", dice, progress.step)
        print(_line(progress), flush=True)

    return report


def _line(progress: Progress) -> str:
    dice = " ".join(f"{value:.3f}" for value in progress.dice_by_round)
    return (
        f"step {progress.step} of {progress.total_steps}  {progress.image_size} px  loss {progress.loss:.3f}  "
        f"Dice by prompt {dice}  {progress.step_seconds:.2f} s a step"
    )
