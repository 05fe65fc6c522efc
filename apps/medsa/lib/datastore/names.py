"""Names that come from clients and become parts of paths: image ids and label tags.

Whatever passes here is one plain file name: no separator, no "..", nothing hidden.
"""

import re
from enum import Enum

from lib.errors import InputError

MAX_IMAGE_ID = 200  # bytes: file systems allow 255 of them, and suffixes come on top
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_FORBIDDEN = frozenset('/\\:*?"<>|')


def check_image_id(value: object) -> str:
    """The image id as it is; raises InputError when it could name anything but one file of the folder."""
    if not isinstance(value, str) or not _is_plain_name(value):
        raise InputError(
            "image",
            value,
            f"a name of printable characters, 1 to {MAX_IMAGE_ID} bytes of UTF-8, that does not begin with a dot "
            'and holds none of / \\ : * ? " < > | and no ".."',
        )
    return value


def check_tag(value: object) -> str:
    """The label tag as plain text; raises InputError for anything that is no plain name."""
    text = value.value if isinstance(value, Enum) else value
    if not isinstance(text, str) or not _TAG.fullmatch(text):
        raise InputError("tag", text, "final, original, or 1 to 32 letters, digits, - and _")
    return text


def _is_plain_name(value: str) -> bool:
    return (
        value == value.strip()
        and value.isprintable()
        and 0 < len(value.encode()) <= MAX_IMAGE_ID
        and not value.startswith(".")
        and ".." not in value
        and not _FORBIDDEN.intersection(value)
    )
