"""Names from clients that become parts of paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.datastore.names import check_image_id, check_tag
from lib.errors import InputError


@pytest.mark.parametrize(
    "image_id", ["case0", "SC-HF-I-01_ED", "1.2.840.113619", "Fall 7 (links)", "größe", "ü" * 100]
)
def test_plain_names_pass(image_id: str) -> None:
    assert check_image_id(image_id) == image_id


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "../x",
        "a..b",
        ".hidden",
        "a\nb",
        "a\0b",
        " a",
        "x" * 201,
        "ü" * 101,
        "\ud800",
        None,
        7,
    ],
)
def test_what_could_leave_the_folder_is_refused(image_id: object) -> None:
    with pytest.raises(InputError, match="image"):
        check_image_id(image_id)


@given(st.text())
def test_whatever_passes_is_one_name_in_one_folder(text: str) -> None:
    try:
        name = check_image_id(text)
    except InputError:
        return
    assert "/" not in name
    assert name not in ("", ".", "..")


@pytest.mark.parametrize("tag", ["final", "original", "reader-2", "v1_b"])
def test_tags_pass(tag: str) -> None:
    assert check_tag(tag) == tag


def test_monai_labels_own_tag_becomes_text() -> None:
    assert check_tag(DefaultLabelTag.FINAL) == "final"
    assert type(check_tag(DefaultLabelTag.FINAL)) is str


@pytest.mark.parametrize("tag", ["", "../x", "a b", "a/b", "-x", "x" * 33, None, "final\n"])
def test_other_tags_are_refused(tag: object) -> None:
    with pytest.raises(InputError, match="tag"):
        check_tag(tag)
