"""A label map as a DICOM Segmentation: each label a segment by name, and who made it with which weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from lib.dicom.colours import RGB, to_dicom_lab
from lib.dicom.grid import SeriesGrid
from lib.errors import LabelError
from lib.version import VERSION

ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
ARTIFICIAL_INTELLIGENCE = Code("123109", "DCM", "Artificial Intelligence")
SERIES_NUMBER = 300
# Attributes that highdicom copies from the image; what that lacks may be empty (type 2).
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# What highdicom refuses to copy: empty, or like this.
_CHECKS = {
    "PatientSex": re.compile("[MFO]?"),
    "PatientBirthDate": re.compile(r"(\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?"),
    "StudyDate": re.compile(r"(\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?"),
    "StudyTime": re.compile(r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?)?"),
}


@dataclass(frozen=True)
class LabelCode:
    """What a label is called in a coding scheme, e.g. 10200004, SCT, Liver, and the colour that it is shown in.

    `modifier` says which part of that it is, e.g. 255549009, SCT, Anterior.
    """

    code: Code
    rgb: RGB
    modifier: Code | None = None


@dataclass(frozen=True)
class SegOrigin:
    """Who made a label: `author`, with the weights `algorithm` (base) and `version` (adapter).

    `series` and `instance` are the identifiers of the segmentation.
    """

    author: str
    algorithm: str
    version: str
    series: str
    instance: str
    description: str = ""


def write_seg(
    values: NDArray[np.uint8],
    labels: Mapping[str, int],
    codes: Mapping[str, LabelCode],
    headers: Sequence[Dataset],
    grid: SeriesGrid,
    origin: SegOrigin,
) -> Dataset:
    """`values` (i, j, k), with 0 and the values of `labels`, as a binary segmentation of the series.

    `headers` are the series' instances in any order, the ones that `grid` was made of. Only labels that occur become
    segments, numbered from 1 in the order of their values. Raises LabelError for another shape, other values, or where
    there is no label at all: such an object does not exist in DICOM.
    """
    if values.shape != grid.shape_ijk:
        raise LabelError(f"label: shape {values.shape} is not its image's {grid.shape_ijk}")
    names = _present(values, labels)
    numbers = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(names, 1):
        numbers[labels[name]] = number
    frames = np.ascontiguousarray(numbers[values].transpose(2, 1, 0))
    sources = [_completed(headers[place], grid) for place in grid.order]
    written = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(number, name, codes.get(name), origin) for number, name in enumerate(names, 1)
        ],
        series_instance_uid=origin.series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=origin.instance,
        instance_number=1,
        manufacturer="medsa",
        manufacturer_model_name=origin.algorithm,
        software_versions=VERSION,
        device_serial_number="0",
        content_creator_name=_person(origin.author),
        content_label="SEGMENTATION",
        content_description=origin.description[:64] or None,
        series_description=f"medsa {origin.algorithm} {origin.version}"[:64],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    # Names of patients, annotators and labels in any script.
    written.SpecificCharacterSet = "ISO_IR 192"
    return written


def _present(values: NDArray[np.uint8], labels: Mapping[str, int]) -> list[str]:
    found = set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()) - {0}
    strange = sorted(found - set(labels.values()))
    if strange:
        named = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise LabelError(f"label: value {strange[0]} is not in the label set; allowed: 0, {named}")
    if not found:
        raise LabelError("label: it is empty; allowed: at least one voxel of a label")
    return sorted((name for name, value in labels.items() if value in found), key=lambda name: labels[name])


def _segment(number: int, name: str, code: LabelCode | None, origin: SegOrigin) -> hd.seg.SegmentDescription:
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=ANATOMY,
        segmented_property_type=code.code if code else ANATOMY,
        # A person has looked at it and pressed Submit.
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=f"medsa {origin.algorithm}", family=ARTIFICIAL_INTELLIGENCE, version=origin.version
        ),
    )
    if code:
        described.RecommendedDisplayCIELabValue = to_dicom_lab(code.rgb)
    if code and code.modifier:
        (meant,) = described.SegmentedPropertyTypeCodeSequence
        meant.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(code.modifier)]
    return described


def _person(author: str) -> str:
    """A person's name as DICOM has it: one part, which the caret says is meant."""
    plain = "".join(" " if letter in "\\^=\r\n" else letter for letter in author).strip()
    return f"{plain[:63] or 'unknown'}^"


def _completed(header: Dataset, grid: SeriesGrid) -> Dataset:
    """With what has to be there, and without what is not as the standard has it: real series hold much."""
    whole = Dataset()
    whole.update(header)
    for name in _TYPE_2:
        if name not in whole:
            setattr(whole, name, None)
    for name, fits in _CHECKS.items():
        if not fits.fullmatch(str(whole.get(name) or "")):
            setattr(whole, name, None)
    if whole.get("LossyImageCompression") == "01" and "LossyImageCompressionMethod" not in whole:
        del whole.LossyImageCompression
    whole.SliceThickness = f"{float(np.linalg.norm(grid.affine[:3, 2])):.6g}"
    return whole
