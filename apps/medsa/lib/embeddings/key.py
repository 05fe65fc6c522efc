"""The name of one slice's embedding: all that it depends on."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class SliceKey:
    """`volume` is a Volume's content_key, `index` counts along `axis` (0, 1 or 2).

    `model` says how it is encoded: weights, precision, image size, intensity window, and the company it is encoded in.
    """

    volume: str
    model: str
    axis: int
    index: int

    @property
    def digest(self) -> str:
        """Names the key in 32 hexadecimal digits."""
        return digest(f"{self.volume}\n{self.model}\n{self.axis}\n{self.index}")


def digest(text: str) -> str:
    """The first half of the text's SHA-256: 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
