"""Warming with a real network on real files: what is encoded, when, and in which order."""

import threading
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from lib.embeddings import EmbeddingCache
from lib.infers.serving import OpenBase, ServingModel, View
from lib.infers.volumes import VolumeCache
from lib.infers.warming import MOST_WAITING, Warmer
from lib.model.adapter_io import AdapterConfig, save_adapter
from lib.model.medsa import MedSA
from lib.prompts.promptset import PromptSet
from lib.settings import IntensitySettings
from lib.training.releases import Releases
from lib.turns import Asker
from lib.volume import load_volume

PATIENCE_S = 10.0


@pytest.fixture
def serving(tiny_model: MedSA, tmp_path: Path) -> ServingModel:
    view = View(IntensitySettings(), "k", "cpu")
    base = OpenBase("tiny", "a test", "0" * 64, tiny_model)
    cache = EmbeddingCache(1 << 26)
    return ServingModel(lambda: base, Releases(tmp_path / "state"), {"object": 1}, view, cache)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(MOST_WAITING + 2):
        path = tmp_path / f"case{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(rng.random((12, 12, 24), dtype=np.float32), np.eye(4)), path)
        paths.append(path)
    return paths


@pytest.fixture
def warmer(serving: ServingModel) -> Warmer:
    serving.current()
    return Warmer(serving, VolumeCache())


@pytest.fixture
def publish(tiny_model: MedSA, tmp_path: Path) -> Callable[[], None]:
    """publish() makes a new version the one that serves."""

    def make() -> None:
        other = MedSA(tiny_model.sam, tiny_model.spec, tiny_model.dims, tiny_model.labels)
        with torch.no_grad():
            for parameter in other.adapters.parameters():
                parameter.fill_(0.25)
        config = AdapterConfig("tiny", "0" * 64, vars(tiny_model.dims), {"object": 1}, {}, "test")
        Releases(tmp_path / "state").publish(lambda folder: save_adapter(folder, other, config, "card"), {})

    return make


def until(holds: Callable[[], bool], what: str) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError(f"waited in vain for {what}")


def warmed(serving: ServingModel, path: Path) -> tuple[int, int]:
    return serving.current().predictor.warmed(load_volume(path))


def test_an_opened_image_is_encoded_whole_and_the_click_encodes_nothing(
    warmer: Warmer, serving: ServingModel, images: list[Path]
) -> None:
    warmer.start(tuple)
    warmer.opened(images[0])
    until(lambda: warmed(serving, images[0]) == (24, 24), "the image")
    until(lambda: warmer.progress() == {"case": "case0", "done": 24, "of": 24, "waiting": 0}, "the progress")
    prediction = serving.current().predictor.predict(load_volume(images[0]), PromptSet(((6, 6, 12),)))
    assert prediction.seconds["encode"] == 0
    assert warmed(serving, images[1]) == (0, 24)


def test_before_start_nothing_happens(warmer: Warmer, serving: ServingModel, images: list[Path]) -> None:
    warmer.opened(images[0])
    assert warmer.progress() == {"case": None, "done": 0, "of": 0, "waiting": 0}
    assert warmed(serving, images[0]) == (0, 24)


def test_the_nearest_slices_come_first(serving: ServingModel, images: list[Path]) -> None:
    predictor, volume = serving.current().predictor, load_volume(images[0])
    embeddings = predictor._encoder.open(volume, "k")
    chunk = predictor._encoder.chunk
    order: list[list[int]] = []

    def still() -> bool:
        order.append(embeddings.missing(range(24)))
        return len(order) < 3

    predictor.warm(volume, 20, Asker("warm-up", background=True), still)
    # Two chunks were encoded: the one of slice 20, and the nearest other one.
    there = sorted(set(range(24)) - set(order[-1]))
    first = 20 // chunk * chunk
    assert set(range(first, min(first + chunk, 24))) <= set(there)
    assert max(abs(index - 20) for index in there) < 2 * chunk
    assert len(there) < 24


def test_the_newest_comes_first_and_the_oldest_is_dropped(
    warmer: Warmer, serving: ServingModel, images: list[Path]
) -> None:
    """While somebody uses the device nothing is encoded; what was opened last is then the first."""
    with serving.turns.turn(Asker("ann")):
        warmer.start(tuple)
        warmer.opened(images[0])
        until(lambda: warmer.progress()["of"] == 24, "the first to be begun")
        for path in images[1:]:
            warmer.opened(path)
        assert warmer.progress()["done"] == 0
        assert warmer.progress()["waiting"] == MOST_WAITING
    until(lambda: warmed(serving, images[-1])[0] == 24, "the newest")
    until(lambda: warmed(serving, images[2])[0] == 24, "the oldest that still waited")
    assert warmed(serving, images[1])[0] == 0, "beyond the bound the one opened longest ago is dropped"


def test_a_bad_file_is_named_and_the_next_one_encoded(
    warmer: Warmer, serving: ServingModel, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    bad = images[0].with_name("bad.nii.gz")
    bad.write_bytes(b"nothing")
    warmer.start(tuple)
    warmer.opened(bad)
    until(lambda: "case bad is not encoded ahead" in caplog.text, "the log")
    warmer.opened(images[0])
    until(lambda: warmed(serving, images[0]) == (24, 24), "the next image")
    assert str(bad.parent) not in caplog.text


def test_a_click_waits_only_for_what_it_needs(
    warmer: Warmer, serving: ServingModel, images: list[Path]
) -> None:
    """The click comes in between two chunks of the warming."""
    predictor, volume = serving.current().predictor, load_volume(images[0])
    begun, answered = threading.Event(), threading.Event()

    def still() -> bool:
        done, _ = predictor.warmed(volume)
        if done:
            begun.set()
            answered.wait(PATIENCE_S)
        return True

    thread = threading.Thread(
        target=predictor.warm, args=(volume, None, Asker("warm-up", background=True), still)
    )
    thread.start()
    assert begun.wait(PATIENCE_S)
    predictor.predict(volume, PromptSet(((6, 6, 12),)), whole_object=False)
    assert predictor.warmed(volume)[0] < 24
    answered.set()
    thread.join(PATIENCE_S)
    assert predictor.warmed(volume) == (24, 24)


def test_another_version_warms_the_cases_in_use_again(
    warmer: Warmer,
    serving: ServingModel,
    images: list[Path],
    publish: Callable[[], None],
) -> None:
    warmer.start(lambda: [images[1]])
    warmer.opened(images[0])
    until(lambda: warmed(serving, images[0]) == (24, 24), "the image")
    publish()
    assert serving.current().adapter_version == 1
    assert warmed(serving, images[0]) == (0, 24)
    until(lambda: warmed(serving, images[0]) == (24, 24), "the image that is open")
    until(lambda: warmed(serving, images[1]) == (24, 24), "the one that comes next")
    assert warmed(serving, images[2]) == (0, 24)
