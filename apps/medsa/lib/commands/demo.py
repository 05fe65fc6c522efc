"""`cli.py demo`: demo studies and, beside them, their true labels for the simulated annotator.

As files for a studies folder, or as DICOM series for a PACS.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK

from lib.commands.phantom import Phantom, make_phantom
from lib.dicom.image import load_series
from lib.dicom.series_writer import SeriesNames, write_series
from lib.errors import InputError
from lib.volume import Volume, save_mask

SUFFIXES = (".nii.gz", ".nrrd")  # in turn, so that both formats are tried
WriteCase = Callable[[Phantom, str, int, Path], None]
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets studies/ and truth/")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (default %(default)s)")
    parser.add_argument("--dicom", action="store_true", help="DICOM series in dicom/ in place of studies/")


def run(arguments: argparse.Namespace, app_dir: Path) -> int:
    """Writes them, or says that there are some already."""
    write, name = (write_demo_series, "dicom") if arguments.dicom else (write_demo, "studies")
    written = write(arguments.out, arguments.cases, arguments.seed)
    print(f"demo: {arguments.out / name} {'written' if written else 'is there already; left alone'}")
    return 0


def write_demo(folder: Path, cases: int, seed: int) -> bool:
    """`folder/studies` and `folder/truth` with `cases` phantoms; both appear whole or not at all.

    Returns False, and changes nothing, when there are studies already: their labels may be somebody's work.
    """
    return _write(folder, "studies", cases, seed, _write_case)


def write_demo_series(folder: Path, cases: int, seed: int) -> bool:
    """`folder/dicom`, a folder a series, and `folder/truth`, named by SeriesInstanceUID; otherwise as `write_demo`."""
    return _write(folder, "dicom", cases, seed, _write_series)


def _write(folder: Path, name: str, cases: int, seed: int, write: WriteCase) -> bool:
    if cases < 1:
        raise InputError("cases", cases, "at least 1")
    if (folder / name).exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".demo-", dir=folder))
    try:
        for part in (name, "truth"):
            (building / part).mkdir()
        for number in range(cases):
            phantom = make_phantom(np.random.default_rng((seed, number)))
            write(phantom, f"phantom_{number + 1:03d}", number, building)
        shutil.rmtree(folder / "truth", ignore_errors=True)
        os.replace(building / "truth", folder / "truth")
        os.replace(building / name, folder / name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def _write_case(phantom: Phantom, name: str, number: int, folder: Path) -> None:
    suffix = SUFFIXES[number % len(SUFFIXES)]
    _save_image(phantom.image, folder / "studies" / f"{name}{suffix}")
    save_mask(phantom.label, phantom.image, folder / "truth" / f"{name}{suffix}")


def _write_series(phantom: Phantom, name: str, number: int, folder: Path) -> None:
    patient = f"PHANTOM-{number + 1:03d}"
    names = SeriesNames(
        patient, "made abdomen", f"medsa demo {hashlib.sha256(phantom.image.array.tobytes()).hexdigest()}"
    )
    files = write_series(phantom.image, names, folder / "dicom" / name)
    # A series has no order but that of its slices' positions, which may run against the phantom's last axis.
    volume, _ = load_series(files)
    turned = not np.array_equal(volume.array, phantom.image.array)
    label = phantom.label[:, :, ::-1] if turned else phantom.label
    save_mask(np.ascontiguousarray(label), volume, folder / "truth" / f"{names.series}.nii.gz")


def _save_image(volume: Volume, path: Path) -> None:
    image = SimpleITK.GetImageFromArray(volume.array.T)
    lps = _RAS_TO_LPS @ volume.affine
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((lps[:3, :3] / volume.spacing_mm).flatten().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)
