"""The form that comes with POST /infer: `params` and the two files, read within limits of size and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lib.errors import BusyError, ClientGoneError, InputError, TooLargeError

# 100,000 points are 1.5 MB: they get as far as the parser, which can say how many are allowed.
MAX_PARAMS_MB = 4
MAX_PARTS = 16
RETRY_AFTER_SECONDS = 10

_TEXT = {"type": "string", "default": "{}", "description": "JSON object: prompts, and the form of the answer"}
_FILE = {"type": "string", "format": "binary"}
FORM_SCHEMA = {
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"params": _TEXT, "file": _FILE, "label": _FILE}}
        }
    }
}


@dataclass(frozen=True)
class InferForm:
    """`params` is JSON as it came, `file` an image, `label` a mask or scribbles on the image's grid."""

    params: str
    file: UploadFile | None
    label: UploadFile | None


@asynccontextmanager
async def infer_form(request: Request, limit_s: float) -> AsyncIterator[InferForm]:
    """The request's form, open for as long as the block lasts.

    Raises InputError for a field of the wrong kind, TooLargeError for too long a `params`, BusyError when the body
    takes longer than `limit_s` seconds, ClientGoneError when the client leaves meanwhile.
    """
    fields = await _read(request, limit_s)
    try:
        yield InferForm(_text(fields), _file(fields, "file"), _file(fields, "label"))
    finally:
        await fields.close()


async def _read(request: Request, limit_s: float) -> FormData:
    try:
        async with asyncio.timeout(limit_s):
            return await request.form(
                max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_PARAMS_MB << 20
            )
    except TimeoutError as error:
        raise BusyError(
            f"the body did not arrive within the limit of {limit_s:g} s", RETRY_AFTER_SECONDS
        ) from error
    except ClientDisconnect as error:
        raise ClientGoneError("the client left while it sent its request") from error
    except HTTPException as error:
        # Of a form only the text fields have a limit, and of ours only `params` is text.
        if "exceeded maximum size" in error.detail:
            allowed = f"at most {MAX_PARAMS_MB} MB"
            raise TooLargeError("params", f"over {MAX_PARAMS_MB} MB", allowed) from error
        raise


def _text(fields: FormData) -> str:
    value: Any = fields.get("params")
    if isinstance(value, UploadFile):
        raise InputError("params", value.filename, "a text field with a JSON object")
    return value or "{}"


def _file(fields: FormData, name: str) -> UploadFile | None:
    value: Any = fields.get(name)
    if isinstance(value, str):
        raise InputError(name, value, "an uploaded file, with a file name")
    if value is None or (not value.filename and not value.size):  # a browser's empty file field
        return None
    return value
