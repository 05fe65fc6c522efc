"""A made volume as a DICOM CT series, for demo studies and tests: real ones come from a PACS."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lib.errors import VolumeError
from lib.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SeriesNames:
    """Who and what the series says it is of; its identifiers are made from `seed`, so that they stay the same."""

    patient: str
    description: str
    seed: str
    modality: str = "CT"

    def uid(self, *parts: object) -> str:
        """An identifier of this series' study, series, frame of reference or one of its instances."""
        return str(generate_uid(entropy_srcs=[self.seed, *map(str, parts)]))

    @property
    def series(self) -> str:
        """SeriesInstanceUID."""
        return self.uid("series")


def write_series(
    volume: Volume, names: SeriesNames, folder: Path, instance_numbers: Sequence[int] | None = None
) -> list[Path]:
    """One file a slice k of `volume` (int16), in a new `folder`; the files in the order of k.

    `instance_numbers` are those of the slices (1, 2, ... where there are none): real series count either way. Raises
    VolumeError for values beyond int16, and for axes that are not at right angles.
    """
    array = volume.array
    if array.ndim != 3 or array.min() < -32768 or array.max() > 32767:
        raise VolumeError(
            f"series {names.description}: values or shape {array.shape} do not fit int16 slices"
        )
    lps = _LPS_TO_RAS @ volume.affine
    directions = lps[:3, :3] / volume.spacing_mm
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise VolumeError(f"series {names.description}: its axes are not at right angles")
    folder.mkdir(parents=True)
    numbers = instance_numbers or range(1, array.shape[2] + 1)
    files = []
    for k, number in enumerate(numbers):
        header = _header(names, volume, lps, directions, k, number)
        header.PixelData = np.ascontiguousarray(array[:, :, k].T, dtype="<i2").tobytes()
        files.append(folder / f"{number:04d}.dcm")
        header.save_as(files[-1], write_like_original=False)
    return files


def _header(
    names: SeriesNames, volume: Volume, lps: np.ndarray, directions: np.ndarray, k: int, number: int
) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(names.uid("instance", k))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.is_little_endian, header.is_implicit_VR = True, False
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID = names.uid("study"), names.series
    header.FrameOfReferenceUID, header.PositionReferenceIndicator = names.uid("frame"), ""
    _name(header, names)
    header.SeriesNumber, header.InstanceNumber, header.AcquisitionNumber = 1, number, 1
    header.ImagePositionPatient = _decimals((lps @ [0, 0, k, 1])[:3])
    header.ImageOrientationPatient = _decimals(directions[:, :2].T.ravel())
    i_mm, j_mm, k_mm = volume.spacing_mm
    header.PixelSpacing = _decimals(np.array([j_mm, i_mm]))
    header.SliceThickness = header.SpacingBetweenSlices = _decimals(np.array([k_mm]))[0]
    header.Columns, header.Rows = volume.shape_ijk[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = "0", "1", "HU"
    header.WindowCenter, header.WindowWidth = "40", "400"
    return header


def _name(header: FileDataset, names: SeriesNames) -> None:
    header.PatientName, header.PatientID = f"{names.patient}^", names.patient
    header.PatientBirthDate, header.PatientSex = "", "O"
    header.StudyDate = header.SeriesDate = header.ContentDate = "20260101"
    header.StudyTime = header.SeriesTime = header.ContentTime = "120000"
    header.StudyID, header.AccessionNumber, header.ReferringPhysicianName = "1", "", ""
    header.StudyDescription = header.SeriesDescription = names.description
    header.Modality, header.Manufacturer, header.KVP = names.modality, "medsa", "120"
    header.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    header.PatientPosition, header.BodyPartExamined = "HFS", "ABDOMEN"


def _decimals(values: np.ndarray) -> list[str]:
    """As decimal strings of at most 16 letters, which is what DICOM allows."""
    return [np.format_float_positional(value, precision=10, trim="-")[:16] for value in values]
