"""What a model says of a slice, asked in slightly other ways: where that changes its answer, it does not know.

Other prompts and thinned adapters need no more than the embeddings that are there; a mirrored image and another
contrast are encoded, on one slice.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lib.model.medsa import MedSA, SinglePrompt
from lib.predictor import Study
from lib.prompts.simulate import interior_point, random_click
from lib.scoring.measures import INSIDE, Probability, disagreement
from lib.transforms.geometry import PlaneGeometry

VARIED_SLICES = 4  # of one label
DROPPED = 0.2  # of the hidden units of each adapter
THINNED = 2  # networks
GAMMA = 1.3  # of the other contrast
WHITE = 255.0
ALIKE = 1e-6  # less than this is rounding


def thinned(model: MedSA, seed: int = 0) -> tuple[MedSA, ...]:
    """Networks like `model` in which some hidden units of each adapter are missing; none where none is trained."""
    if not model.trained:
        return ()
    generator = torch.Generator().manual_seed(seed)
    return tuple(_thinned(model, generator) for _ in range(THINNED))


def instability(
    study: Study,
    prompt: SinglePrompt,
    probability: Probability,
    networks: Sequence[MedSA],
    rng: np.random.Generator,
) -> float:
    """The mean disagreement (0 to 1) of `probability` (n, m, m), the answers to `prompt`, with all variations.

    0 where the object is on no slice: then there is nothing to vary.
    """
    areas = (probability >= INSIDE).sum(axis=(1, 2))
    filled = np.flatnonzero(areas)
    if len(filled) == 0:
        return 0.0
    rows = filled[np.linspace(0, len(filled) - 1, min(VARIED_SLICES, len(filled))).round().astype(int)]
    found = [
        disagreement(probability[rows], other)
        for other in _from_embeddings(study, prompt, probability, rows, networks, rng)
    ]
    found += _from_images(study, prompt, int(areas.argmax()))
    return float(np.mean([value if value > ALIKE else 0.0 for value in found]))


def _from_embeddings(
    study: Study,
    prompt: SinglePrompt,
    probability: Probability,
    rows: NDArray[np.intp],
    networks: Sequence[MedSA],
    rng: np.random.Generator,
) -> Iterator[Probability]:
    features = study.features[torch.from_numpy(rows)]
    for network in networks:
        yield study.probability(features, [prompt] * len(rows), network)
    geometry = study.embeddings.geometry
    masks = [probability[row].T >= INSIDE for row in rows]
    places = [
        place(mask) for place in (interior_point, lambda mask: random_click(mask, rng)) for mask in masks
    ]
    clicks = [_click(geometry, place, prompt.label_id) for place in places]
    # Both at once: so few slices cost less than asking twice does.
    clicked = study.probability(torch.cat([features, features]), clicks)
    yield clicked[: len(rows)]
    yield clicked[len(rows) :]


def _from_images(study: Study, prompt: SinglePrompt, row: int) -> list[float]:
    """Mirrored along u, and in another contrast, against the slice as it is, all three without neighbours."""
    plane = study.planes(study.slices[row])
    shown = np.concatenate([plane, plane[:, ::-1], WHITE * (plane / WHITE) ** GAMMA])
    answers = study.probability(study.encode(shown), [prompt] * len(shown))
    voxels = study.embeddings.geometry.logits_to_voxels(torch.from_numpy(answers)).numpy()
    plain, mirrored, contrast = voxels[0], voxels[1, ::-1], voxels[2]
    if plain.max() < INSIDE:
        return []
    return [disagreement(plain, mirrored), disagreement(plain, contrast)]


def _click(geometry: PlaneGeometry, pixel_xy: Sequence[int], label_id: int) -> SinglePrompt:
    x, y = geometry.mask_pixels_to_model(np.asarray([pixel_xy]))[0]
    return SinglePrompt(points=((float(x), float(y), 1),), label_id=label_id)


def _thinned(model: MedSA, generator: torch.Generator) -> MedSA:
    """A bottleneck's `up` has one column for each hidden unit; those that stay stand for those that go."""
    state = model.adapter_state()
    for key, weight in state.items():
        if key.endswith("up.weight"):
            kept = torch.rand(weight.shape[1], generator=generator) >= DROPPED
            state[key] = weight * kept / (1.0 - DROPPED)
    other = model.sibling()
    other.load_adapter_state(state, model.dims)
    return other.eval()
