"""Encoding the slices of volumes, in chunks that are always the same.

Concurrency. Shared between requests: the intensity windows of the last volumes, guarded by `_lock`, which is not held
while one is computed, and the cache, which guards itself. The model belongs to whoever holds the device's turn: `fetch`
is called with it and gives way between two chunks, so that a click waits for one chunk of somebody else's volume at
most, never for all of it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.embeddings.cache import EmbeddingCache
from lib.embeddings.key import SliceKey
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.transforms.geometry import AxisChoice, PlaneGeometry, plane_geometry, slice_axis, take_planes
from lib.transforms.intensity import Window, intensity_window, to_model_range
from lib.turns import Turn
from lib.version import VERSION
from lib.volume import Volume

# Slices encoded in one call: as many as fill the device, at most 8, so that a click does not pay for slices
# that the object never reaches. Counted in tokens, because a slice of vit_b at 1024 pixels has 16 times those
# of vit_t at 256. Where the model looks along depth it is the next whole number of slabs.
CHUNK_TOKENS = {"cpu": 2048, "cuda": 32768}
MAX_CHUNK_SLICES = 8
# Half precision keeps twice the slices in the same memory; its rounding is far below what changes a mask.
STORED_DTYPE = torch.float16
# Raised whenever a slice is brought to the model in another way: embeddings on disk outlive the code that made them.
ENCODING = 1
# A window is two numbers; whoever comes back to one of the last volumes need not have it computed again.
KEPT_WINDOWS = 64


def slab_lengths(count: int, slab: int) -> tuple[int, ...]:
    """The lengths of the slabs into which `count` slices fall, `slab` each; the last one may be shorter."""
    whole, rest = divmod(count, slab)
    return (slab,) * whole + ((rest,) if rest else ())


class SliceEncoder:
    """Encodes slices of volumes with one model and keeps the results in `cache`.

    `model_key` names the weights: whoever trains the model, or loads another adapter into it, takes a new key.
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
        self.cache, self.device = cache, device
        self._lock = threading.Lock()
        self._windows: OrderedDict[str, Window] = OrderedDict()

    @property
    def chunk(self) -> int:
        """How many slices are encoded in one call: whole slabs of the model as it is now."""
        spec, slab = self.model.spec, self.model.slab
        fitting = max(1, min(MAX_CHUNK_SLICES, CHUNK_TOKENS[self.device.type] // spec.grid**2))
        return -(-fitting // slab) * slab

    @property
    def full_key(self) -> str:
        """All but volume, axis and index that an embedding depends on, as SliceKey.model.

        Chunk and slab are the company in which a slice is encoded; device and precision decide how it is rounded.
        """
        window = self.intensity.model_dump_json()
        return (
            f"{self.model_key} encoding {VERSION}/{ENCODING} image {self.model.spec.image_size} "
            f"{self.device.type} {self.model.precision} chunk {self.chunk} slab {self.model.slab} window {window}"
        )

    def open(self, volume: Volume, axis_choice: AxisChoice) -> "VolumeEmbeddings":
        """The embeddings of `volume`, sliced along `axis_choice`; computes nothing yet."""
        axis = slice_axis(volume.spacing_mm, axis_choice, volume.shape_ijk)
        spec = self.model.spec
        geometry = plane_geometry(volume.shape_ijk, volume.spacing_mm, axis, spec.image_size, spec.mask_size)
        return VolumeEmbeddings(self, volume, axis, geometry)

    def window(self, volume: Volume) -> Window:
        """The intensities of `volume` that become black and white; computed once for the last volumes."""
        with self._lock:
            kept = self._windows.get(volume.content_key)
        if kept is not None:
            return kept
        window = intensity_window(volume.array, self.intensity)
        with self._lock:
            self._windows[volume.content_key] = window
            if len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        return window

    def encode(self, planes: Tensor) -> Tensor:
        """One chunk's planes (B, 3, S, S) -> embeddings (B, 256, g, g) as stored. The caller holds the turn."""
        depths = slab_lengths(len(planes), self.model.slab)
        with torch.inference_mode():
            return self.model.encode(planes.to(self.device), depths).to("cpu", STORED_DTYPE)


class VolumeEmbeddings:
    """The embeddings of one volume for one request. Not shared between threads."""

    def __init__(self, encoder: SliceEncoder, volume: Volume, axis: int, geometry: PlaneGeometry) -> None:
        self.encoder, self.volume, self.axis, self.geometry = encoder, volume, axis, geometry
        self.slice_count: int = volume.shape_ijk[axis]
        self.encode_seconds = 0.0
        self._encoded_in: Turn | None = None

    def prepare(self) -> None:
        """Does what needs no device, before the turn: the intensity window, if any slice may have to be encoded."""
        contains = self.encoder.cache.contains
        if not all(contains(key) for key in self._keys(range(self.slice_count)).values()):
            self.encoder.window(self.volume)

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of the slices `indices` that are neither in memory nor on disk, in their order."""
        keys = self._keys(indices)
        return [index for index in indices if not self.encoder.cache.contains(keys[index])]

    def fetch(self, indices: Sequence[int], turn: Turn) -> Tensor:
        """Embeddings (P, 256, g, g) float32 of the slices `indices`, on the model's device.

        The caller holds `turn`, which gives way before every chunk but the first that is encoded in it. Raises
        BusyError and ClientGoneError as the turn does.
        """
        cache, length = self.encoder.cache, self.encoder.chunk
        found: dict[int, Tensor] = {}
        missing: dict[int, list[int]] = {}
        for index, key in self._keys(indices).items():
            embedding = cache.get(key)
            if embedding is None:
                missing.setdefault(index // length, []).append(index)
            else:
                found[index] = embedding
        for chunk in sorted(missing):
            found |= self._chunk(chunk, missing[chunk], turn)
        # Half as much goes to the device; each number is the same there.
        return torch.stack([found[index] for index in indices]).to(self.encoder.device).float()

    def scaled_planes(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Slices as the model is shown them, 0 to 255, in voxels: (B, n_u, n_v), in colour (B, n_u, n_v, 3)."""
        planes = take_planes(self.volume.array, self.axis, indices)
        return to_model_range(planes, self.encoder.intensity, self.encoder.window(self.volume))

    def encode_alone(self, planes: NDArray[np.float32]) -> Tensor:
        """Embeddings (B, 256, g, g) of such planes, each without neighbours; not kept. The caller holds the turn."""
        device, model = self.encoder.device, self.encoder.model
        shown = self.geometry.planes_to_model(torch.from_numpy(np.ascontiguousarray(planes)).to(device))
        with torch.inference_mode():
            return model.encode(shown, (1,) * len(shown)).float()

    def _keys(self, indices: Sequence[int]) -> dict[int, SliceKey]:
        volume, model = self.volume.content_key, self.encoder.full_key
        return {index: SliceKey(volume, model, self.axis, index) for index in indices}

    def _chunk(self, chunk: int, wanted: Sequence[int], turn: Turn) -> dict[int, Tensor]:
        """The `wanted` slices of the chunk number `chunk`, by somebody else's work or by encoding all of it."""
        if self._encoded_in is turn:
            turn.give_way()
            others = self._encoded_by_others(wanted)
            if others is not None:
                return others
        self._encoded_in = turn
        first = chunk * self.encoder.chunk
        return self._encode(range(first, min(first + self.encoder.chunk, self.slice_count)))

    def _encoded_by_others(self, wanted: Sequence[int]) -> dict[int, Tensor] | None:
        found: dict[int, Tensor] = {}
        for index, key in self._keys(wanted).items():
            embedding = self.encoder.cache.peek(key)
            if embedding is None:
                return None
            found[index] = embedding
        return found

    def _encode(self, indices: range) -> dict[int, Tensor]:
        """One chunk of slices, encoded and cached.

        Chunks begin at multiples of their length, and slabs at multiples of theirs, whichever slice is asked for: a
        slice is then always encoded in the same company. Neither what it sees along depth nor rounding, which depends
        on the batch, can make an answer depend on earlier requests.
        """
        started = time.perf_counter()
        encoder = self.encoder
        scaled = torch.from_numpy(self.scaled_planes(indices))
        # Resized where the model is: a GPU does in passing what costs a CPU more than the way there.
        encoded = encoder.encode(self.geometry.planes_to_model(scaled.to(encoder.device)))
        # Copies: a view would keep the whole chunk alive behind one slice that the cache still counts.
        found = {index: encoded[row].clone() for row, index in enumerate(indices)}
        for index, key in self._keys(indices).items():
            encoder.cache.put(key, found[index])
        self.encode_seconds += time.perf_counter() - started
        return found
