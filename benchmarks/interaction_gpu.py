"""vit_b at 1024 pixels on a GPU, cold and warm. Needs torch and no MONAI Label."""

import time
from statistics import median

import torch
from base_figures import figure_of
from interaction_volumes import big_volume
from network import VIT_B, VIT_B_DIMS, Figure, adapted, random_sam

from lib.embeddings import EmbeddingCache
from lib.predictor import Predictor
from lib.settings import IntensitySettings
from lib.volume import Volume

COLD, WARM = "vit_b 1024 px, 100 slices answered, GPU: cold", "vit_b 1024 px, 100 slices answered, GPU: warm"
COLD_BAR, WARM_BAR, REPEATS = "<= 2", "<= 150", 10


def gpu_figures() -> list[Figure]:
    """With random weights, which cost the same but carry no object: all slices are answered at once instead."""
    if not torch.cuda.is_available():
        note = "no GPU on this machine"
        return [figure_of(COLD, None, "s", COLD_BAR, note), figure_of(WARM, None, "ms", WARM_BAR, note)]
    made = big_volume()
    model = adapted(random_sam(VIT_B), VIT_B, VIT_B_DIMS, "bfloat16")
    predictor = Predictor(model, "gpu", IntensitySettings(), "k", EmbeddingCache(4 << 30), "cuda")
    times = []
    for seed in range(2):  # the first volume pays for starting the GPU
        volume = Volume(made.image + seed, torch.diag(torch.tensor([*made.spacing_mm, 1.0])).double().numpy())
        times.append(_seconds(predictor, volume))
    warm = median(_seconds(predictor, volume) for _ in range(REPEATS))
    return [figure_of(COLD, times[-1], "s", COLD_BAR), figure_of(WARM, 1000 * warm, "ms", WARM_BAR)]


def _seconds(predictor: Predictor, volume: Volume) -> float:
    started = time.perf_counter()
    predictor.automatic_labels(volume, ["object"])
    return time.perf_counter() - started
