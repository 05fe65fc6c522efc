"""Small files written so that a reader sees the old or the new one, never half of one."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes `path` atomically and makes its folder when there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(path)
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Like write_text, with `value` as JSON; what JSON does not know is written as its text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file, or it is not one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def copy_beside(source: Path, target: Path) -> Path:
    """A flushed copy of `source` in the folder of `target`, ready to be moved there by Path.replace."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(target)
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    return part


def flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; raises OSError when it is gone."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_signature(path: str | Path) -> str:
    """Tells one file of a name from another without reading it: by size and time of the last change. Raises OSError."""
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def remove_parts_of(path: Path) -> None:
    """Removes what killed writers of `path` left beside it; for whoever knows that nobody writes it now."""
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)


def part_beside(path: Path) -> Path:
    """A new name beside `path`, hidden and with a foreign suffix, so that no listing takes it for data."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
