"""`cli.py demo`: demo studies and, beside them, their true labels for the simulated annotator."""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK

from lib.commands.phantom import make_phantom
from lib.errors import InputError
from lib.volume import Volume, save_mask

SUFFIXES = (".nii.gz", ".nrrd")  # in turn, so that both formats are tried
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets studies/ and truth/")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (default %(default)s)")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Writes them, or says that there are some already."""
    written = write_demo(arguments.out, arguments.cases, arguments.seed)
    print(f"demo: {arguments.out / 'studies'} {'written' if written else 'is there already; left alone'}")
    return 0


def write_demo(folder: Path, cases: int, seed: int) -> bool:
    """`folder/studies` and `folder/truth` with `cases` phantoms; both appear whole or not at all.

    Returns False, and changes nothing, when there are studies already: their labels may be somebody's work.
    """
    if cases < 1:
        raise InputError("cases", cases, "at least 1")
    if (folder / "studies").exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".demo-", dir=folder))
    try:
        _write_cases(building, cases, seed)
        shutil.rmtree(folder / "truth", ignore_errors=True)
        os.replace(building / "truth", folder / "truth")
        os.replace(building / "studies", folder / "studies")
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def _write_cases(folder: Path, cases: int, seed: int) -> None:
    (folder / "studies").mkdir()
    (folder / "truth").mkdir()
    for number in range(cases):
        phantom = make_phantom(np.random.default_rng((seed, number)))
        name = f"phantom_{number + 1:03d}{SUFFIXES[number % len(SUFFIXES)]}"
        _save_image(phantom.image, folder / "studies" / name)
        save_mask(phantom.label, phantom.image, folder / "truth" / name)


def _save_image(volume: Volume, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(volume.array.T)
    lps = _RAS_TO_LPS @ volume.affine
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((lps[:3, :3] / volume.spacing_mm).flatten().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)
