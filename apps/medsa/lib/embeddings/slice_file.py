"""One embedding as the bytes of a safetensors file.

It holds one tensor, `embedding`. Its metadata are the whole key (a file's name is a digest only) and a checksum over
values, type and shape: safetensors notices a file that is cut off, but not a bit that has flipped.
"""

import json
import zlib

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, uint8

from lib.embeddings.key import SliceKey

NAME = "embedding"


def pack(key: SliceKey, embedding: Tensor) -> bytes:
    """The file of `embedding` (any shape), which is on the CPU."""
    embedding = embedding.contiguous()
    return save({NAME: embedding}, {**_metadata(key), "checksum": _checksum(embedding)})


def unpack(content: bytes, key: SliceKey) -> Tensor | None:
    """The embedding of `key` in `content`; None where that is damaged or holds another one."""
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError):
        return None
    embedding = tensors.get(NAME)
    if embedding is None:
        return None
    expected = {**_metadata(key), "checksum": _checksum(embedding)}
    return embedding if header.get("__metadata__") == expected else None


def _metadata(key: SliceKey) -> dict[str, str]:
    return {"volume": key.volume, "model": key.model, "axis": str(key.axis), "index": str(key.index)}


def _checksum(embedding: Tensor) -> str:
    """CRC-32 suffices against decay, which is all it is for, at a third of the time of SHA-256."""
    kind = f"{embedding.dtype} {tuple(embedding.shape)}".encode()
    return f"{zlib.crc32(embedding.flatten().view(uint8).numpy().data, zlib.crc32(kind)):08x}"
