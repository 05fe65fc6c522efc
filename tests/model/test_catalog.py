"""Which base serves, and why."""

from pathlib import Path

import pytest

from lib.errors import CheckpointError
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec
from lib.model.catalog import BaseCatalog, BaseEntry, BaseRequest

DIMS = AdapterDims(4, 4, 4, 2, 2)


def spec(name: str) -> BaseSpec:
    return BaseSpec(name, 64, 16, 32, 2, 2, (1,), 2)


def fetched(url: str, target: Path, sha256: str, size: int) -> Path:
    return target


def offline(url: str, target: Path, sha256: str, size: int) -> Path:
    raise CheckpointError(f"checkpoint {target}: cannot be fetched")


def catalog(fetch_file: object) -> BaseCatalog:
    entries = {
        "vit_t": BaseEntry(spec("vit_t"), DIMS, shipped="vit_t.safetensors"),
        "vit_b": BaseEntry(spec("vit_b"), DIMS, url="https://host/sam_b.pth", size_bytes=3, sha256="c" * 64),
    }
    return BaseCatalog(entries, Path("weights"), Path("downloads"), fetch_file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "fetch_file", "name", "why"),
    [
        (BaseRequest(), fetched, "vit_t", "no GPU"),
        (BaseRequest(has_gpu=True), fetched, "vit_b", "has a GPU"),
        (BaseRequest(has_gpu=True), offline, "vit_t", "cannot be fetched"),
        (BaseRequest(has_gpu=True, published_on="vit_t"), fetched, "vit_t", "published"),
        (BaseRequest(published_on="vit_b"), fetched, "vit_b", "published"),
        (BaseRequest(has_gpu=True, served_on="vit_t"), fetched, "vit_t", "the server here uses it"),
        (BaseRequest(published_on="vit_b", served_on="vit_t"), fetched, "vit_b", "published"),
        (BaseRequest(base="vit_b"), fetched, "vit_b", "asked for"),
        (BaseRequest(base="vit_t", published_on="vit_b"), fetched, "vit_t", "asked for"),
    ],
)
def test_auto_follows_the_machine_and_stays_with_what_was_published(
    request_: BaseRequest, fetch_file: object, name: str, why: str
) -> None:
    choice = catalog(fetch_file).choose(request_)
    assert choice.name == name
    assert why in choice.reason


def test_files_are_where_the_catalogue_says() -> None:
    shipped = catalog(fetched).choose(BaseRequest())
    downloaded = catalog(fetched).choose(BaseRequest(base="vit_b"))
    assert (shipped.path, shipped.sha256) == (Path("weights/vit_t.safetensors"), None)
    assert (downloaded.path, downloaded.sha256) == (Path("downloads/sam_b.pth"), "c" * 64)


def test_ones_own_checkpoint_is_taken_as_it_is() -> None:
    choice = catalog(offline).choose(BaseRequest(base="vit_b", checkpoint=Path("medsam.pth")))
    assert (choice.path, choice.sha256) == (Path("medsam.pth"), None)
    assert "medsam.pth" in choice.reason


def test_a_base_asked_for_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"sam_b\.pth"):
        catalog(offline).choose(BaseRequest(base="vit_b"))
