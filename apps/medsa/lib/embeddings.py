"""Image embeddings of slices: computed once for a volume and a model, kept in memory within a bound.

Concurrency. Shared between requests: the cache's table (guarded by the cache's own lock), the last volume
brought to model range (guarded by `_range_lock`) and the model itself (guarded by the model lock, which
belongs to the predictor and is handed in). Order: model lock, then cache lock; `_range_lock` is never held
together with another one. No lock is held while a volume is read or rescaled. The model lock is taken for one
chunk of slices at a time, so that a click waits for one chunk of somebody else's volume at most, never for
all of it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.transforms.geometry import AxisChoice, PlaneGeometry, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import to_model_range
from lib.volume import Volume

FloatArray = NDArray[np.float32]

# Slices encoded in one call: as many as fill the device, at most 8, so that a click does not pay for slices
# that the object never reaches. Counted in tokens, because a slice of vit_b at 1024 pixels has 16 times those
# of vit_t at 256. Where the model looks along depth it is the next whole number of slabs.
CHUNK_TOKENS = {"cpu": 2048, "cuda": 32768}
MAX_CHUNK_SLICES = 8
# Half precision keeps twice the slices in the same memory; its rounding is far below what changes a mask.
STORED_DTYPE = torch.float16


@dataclass(frozen=True)
class SliceKey:
    """Names one slice: `volume` is a Volume's content_key, `index` counts along `axis` (0, 1 or 2)."""

    volume: str
    model: str
    axis: int
    index: int


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made; `used_bytes` and `slices` are of now."""

    hits: int
    misses: int
    evictions: int
    slices: int
    used_bytes: int
    max_bytes: int


class EmbeddingCache:
    """Embeddings (256, g, g) by slice; beyond `max_bytes` the least recently used go. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[SliceKey, Tensor] = OrderedDict()
        self._used = self._hits = self._misses = self._evictions = 0

    def get(self, key: SliceKey) -> Tensor | None:
        """The embedding as it was stored (not to be written to), or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry

    def peek(self, key: SliceKey) -> Tensor | None:
        """Like `get`, but it neither counts nor makes the slice any younger."""
        with self._lock:
            return self._entries.get(key)

    def put(self, key: SliceKey, embedding: Tensor) -> None:
        """Keeps `embedding`, unless it alone exceeds the bound."""
        size = embedding.nbytes
        if size > self.max_bytes:
            return
        with self._lock:
            replaced = self._entries.pop(key, None)
            self._used += size - (0 if replaced is None else replaced.nbytes)
            self._entries[key] = embedding
            while self._used > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._used -= oldest.nbytes
                self._evictions += 1

    def stats(self) -> CacheStats:
        """How well the cache does, as of now."""
        with self._lock:
            return CacheStats(
                self._hits, self._misses, self._evictions, len(self._entries), self._used, self.max_bytes
            )


def slab_lengths(count: int, slab: int) -> tuple[int, ...]:
    """The lengths of the slabs into which `count` slices fall, `slab` each; the last one may be shorter."""
    whole, rest = divmod(count, slab)
    return (slab,) * whole + ((rest,) if rest else ())


class SliceEncoder:
    """Encodes slices of volumes with one model and keeps the results in `cache` under `model_key`.

    `model_key` names the weights, and with them how many slices see each other: whoever trains the model, or loads
    another adapter into it, takes a new key.
    """

    def __init__(
        self,
        model: MedSA,
        model_key: str,
        intensity: IntensitySettings,
        cache: EmbeddingCache,
        device: torch.device,
    ) -> None:
        self.model, self.model_key, self.intensity = model, model_key, intensity
        self.cache, self.device, self.model_lock = cache, device, threading.Lock()
        self._range_lock = threading.Lock()
        self._in_range: tuple[str, FloatArray] | None = None

    @property
    def chunk(self) -> int:
        """How many slices are encoded in one call: whole slabs of the model as it is now."""
        spec, slab = self.model.spec, self.model.slab
        fitting = max(1, min(MAX_CHUNK_SLICES, CHUNK_TOKENS[self.device.type] // spec.grid**2))
        return -(-fitting // slab) * slab

    def open(self, volume: Volume, axis_choice: AxisChoice) -> "VolumeEmbeddings":
        """The embeddings of `volume`, sliced along `axis_choice`; computes nothing yet."""
        axis = slice_axis(volume.spacing_mm, axis_choice)
        spec = self.model.spec
        geometry = plane_geometry(volume.shape_ijk, volume.spacing_mm, axis, spec.image_size, spec.mask_size)
        return VolumeEmbeddings(self, volume, axis, geometry)

    def in_model_range(self, volume: Volume) -> FloatArray:
        """The volume (i, j, k) in 0..255; the last one is kept, as its slices are asked for in turn."""
        with self._range_lock:
            kept = self._in_range
        if kept is not None and kept[0] == volume.content_key:
            return kept[1]
        array = to_model_range(volume.array, self.intensity)
        with self._range_lock:
            self._in_range = (volume.content_key, array)
        return array

    def encode(self, planes: Tensor) -> Tensor:
        """One chunk's planes (B, 3, S, S) -> embeddings (B, 256, g, g) as stored. The caller holds the model lock."""
        depths = slab_lengths(len(planes), self.model.slab)
        with torch.inference_mode():
            return self.model.encode(planes.to(self.device), depths).to("cpu", STORED_DTYPE)


class VolumeEmbeddings:
    """The embeddings of one volume for one request. Not shared between threads."""

    def __init__(self, encoder: SliceEncoder, volume: Volume, axis: int, geometry: PlaneGeometry) -> None:
        self.encoder, self.volume, self.axis, self.geometry = encoder, volume, axis, geometry
        self.slice_count: int = volume.shape_ijk[axis]
        self.encode_seconds = 0.0

    def prepare(self) -> None:
        """Nothing yet."""

    def fetch(self, indices: Sequence[int], turn: object = None) -> Tensor:
        """Embeddings (P, 256, g, g) float32 of the slices `indices`, on the model's device."""
        cache, chunk_length = self.encoder.cache, self.encoder.chunk
        found: dict[int, Tensor] = {}
        missing: set[int] = set()
        for index in indices:
            embedding = cache.get(self._key(index))
            if embedding is None:
                missing.add(index // chunk_length)
            else:
                found[index] = embedding
        for chunk in sorted(missing):
            first = chunk * chunk_length
            found.update(self._chunk(range(first, min(first + chunk_length, self.slice_count))))
        return torch.stack([found[index] for index in indices]).to(self.encoder.device, torch.float32)

    def _key(self, index: int) -> SliceKey:
        return SliceKey(self.volume.content_key, self.encoder.model_key, self.axis, index)

    def _chunk(self, indices: range) -> dict[int, Tensor]:
        """One chunk of slices, encoded and cached.

        Chunks begin at multiples of their length, and slabs at multiples of theirs, whichever slice is asked for: a
        slice is then always encoded in the same company. Neither what it sees along depth nor rounding, which depends
        on the batch, can make an answer depend on earlier requests.
        """
        started = time.perf_counter()
        encoder = self.encoder
        planes = take_planes(encoder.in_model_range(self.volume), self.axis, indices)
        images = self.geometry.planes_to_model(torch.from_numpy(planes))
        with encoder.model_lock:
            result = self._cached(indices)  # somebody else may have encoded it while this request waited
            if result is None:
                encoded = encoder.encode(images)
                # Copies: a view would keep the whole chunk alive behind one slice that the cache still
                # counts.
                result = {index: encoded[row].clone() for row, index in enumerate(indices)}
                for index, embedding in result.items():
                    encoder.cache.put(self._key(index), embedding)
        self.encode_seconds += time.perf_counter() - started
        return result

    def _cached(self, indices: Sequence[int]) -> dict[int, Tensor] | None:
        found: dict[int, Tensor] = {}
        for index in indices:
            embedding = self.encoder.cache.peek(self._key(index))
            if embedding is None:
                return None
            found[index] = embedding
        return found
