"""`cli.py pretrain`: trains the project's own small base on made images."""

import argparse
from pathlib import Path

import torch

from lib.bases import catalog
from lib.pretraining.loop import PretrainConfig, Progress, pretrain
from lib.settings import load_settings

OUT = Path("runs/vit_t")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, whose defaults are the recipe of the shipped weights."""
    recipe = PretrainConfig()
    parser.add_argument(
        "--out", type=Path, default=OUT, help=f"folder for the checkpoint and the weights (default {OUT})"
    )
    parser.add_argument("--steps", type=int, default=recipe.steps, help=f"in all (default {recipe.steps})")
    parser.add_argument(
        "--decay-steps",
        type=int,
        default=recipe.decay_steps,
        help="over which the learning rate falls, at the end",
    )
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--workers", type=int, default=recipe.workers, help="processes that make images")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Trains, or goes on with a run that was stopped, and says where the weights are."""
    torch.set_num_threads(arguments.threads)
    spec = catalog(load_settings(app_dir / "configs", {}), app_dir).entries["vit_t"].spec
    config = PretrainConfig(
        steps=arguments.steps,
        decay_steps=arguments.decay_steps,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    path = pretrain(spec, config, arguments.out, arguments.device, report=_show)
    print(f"weights: {path}")
    return 0


def _show(progress: Progress) -> None:
    dice = " ".join(f"{value:.3f}" for value in progress.dice_by_round)
    print(
        f"step {progress.step}  loss {progress.loss:.3f}  Dice by round {dice}  {progress.seconds:.0f} s",
        flush=True,
    )
