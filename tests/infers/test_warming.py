"""Images are encoded ahead: which ones, in what order, and what comes in between. Real model, cache and turns."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from lib.predictor import Predictor
from lib.prompts.promptset import PromptSet
from lib.settings import IntensitySettings
from lib.training.releases import Releases
from lib.turns import Asker

SHA = "0" * 64
SLICES = 40  # five chunks of eight
CHUNK = 8
SLICE_BYTES = 256 * 4 * 4 * 2


class Watched(EmbeddingCache):
    """A cache that also tells the order in which slices came, as (volume, index)."""

    def __init__(self, max_bytes: int = 1 << 26) -> None:
        super().__init__(max_bytes)
        self.order: list[tuple[str, int]] = []

    def put(self, key: Any, embedding: torch.Tensor) -> None:
        self.order.append((key.volume, key.index))
        super().put(key, embedding)


class Bench:
    """A warmer with all that it uses; images are made on demand."""

    def __init__(self, model: MedSA, folder: Path, cache: EmbeddingCache) -> None:
        self.model, self.folder = model, folder
        self.releases, self.volumes = Releases(folder / "state"), VolumeCache()
        base = OpenBase("tiny", "a test", SHA, model)
        view = View(IntensitySettings(), "k", "cpu")
        self.serving = ServingModel(lambda: base, self.releases, {"object": 1}, view, cache)
        self.warmer = Warmer(self.serving, self.volumes)

    @property
    def predictor(self) -> Predictor:
        return self.serving.current().predictor

    def image(self, name: str, slices: int = SLICES) -> Path:
        path = self.folder / f"{name}.nii.gz"
        if not path.exists():
            voxels = np.random.default_rng(list(name.encode())).normal(100, 30, (16, 16, slices))
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4)), path)
        return path

    def key(self, name: str) -> str:
        return self.volumes.load(self.image(name)).content_key

    def count(self, name: str) -> int:
        """How many of its slices the version that serves now finds in the cache."""
        return self.predictor.warmed(self.volumes.load(self.image(name)))[0]

    def publish(self) -> None:
        other = self.model.sibling()
        with torch.no_grad():
            for parameter in other.adapters.parameters():
                parameter.fill_(0.25)
        config = AdapterConfig("tiny", SHA, vars(other.dims), {"object": 1}, {}, "test")
        self.releases.publish(lambda folder: save_adapter(folder, other, config, "card"), {})

    @contextmanager
    def device_taken(self) -> Iterator[None]:
        """Nobody else gets the device meanwhile."""
        with self.serving.turns.turn(Asker("somebody")):
            yield


@pytest.fixture
def cache() -> Watched:
    return Watched()


@pytest.fixture
def bench(tiny_model: MedSA, tmp_path: Path, cache: Watched) -> Bench:
    made = Bench(tiny_model, tmp_path, cache)
    made.serving.current()
    return made


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def is_idle(warmer: Warmer) -> bool:
    return warmer.progress()["waiting"] == 0 and warmer._now is None


def chunks(cache: Watched, volume: str) -> list[int]:
    """The chunks of `volume` in the order in which they were encoded."""
    return list(dict.fromkeys(index // CHUNK for key, index in cache.order if key == volume))


def volumes_in_order(cache: Watched) -> list[str]:
    return list(dict.fromkeys(key for key, _ in cache.order))


def waiting(warmer: Warmer) -> int:
    return int(warmer.progress()["waiting"])


def test_what_is_opened_is_encoded_the_middle_first(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    bench.warmer.opened(bench.image("a"))
    until(lambda: bench.count("a") == SLICES)
    assert chunks(cache, bench.key("a")) == [2, 3, 1, 4, 0]  # slice 24 is nearer to 20 than slice 15
    assert len(cache.order) == SLICES


def test_the_slices_nearest_to_a_click_come_first(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    bench.warmer.clicked(bench.image("a"), 38, encoded=True)
    until(lambda: bench.count("a") == SLICES)
    assert chunks(cache, bench.key("a")) == [4, 3, 2, 1, 0]


def test_a_click_changes_the_order_of_what_is_under_way(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    with bench.device_taken():
        bench.warmer.opened(bench.image("a"))
        until(lambda: bench.warmer.progress()["of"] == SLICES)
        bench.warmer.clicked(bench.image("a"), 1, encoded=False)
        bench.warmer.opened(bench.image("a"))  # the image alone: still at that slice
    until(lambda: bench.count("a") == SLICES)
    # The chunk that it waited for is the middle one.
    assert chunks(cache, bench.key("a")) == [2, 0, 1, 3, 4]


def test_a_click_that_found_everything_starts_nothing(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    bench.warmer.clicked(bench.image("a"), 1, encoded=False)
    assert waiting(bench.warmer) == 0
    bench.warmer.opened(bench.image("b"))
    until(lambda: bench.count("b") == SLICES and is_idle(bench.warmer))
    assert volumes_in_order(cache) == [bench.key("b")]


def test_the_newest_comes_first_and_what_it_interrupted_goes_on_next(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    with bench.device_taken():
        bench.warmer.opened(bench.image("first"))
        until(lambda: bench.warmer.progress()["of"] == SLICES)
        for name in ("second", "third", "second"):
            bench.warmer.opened(bench.image(name))
        assert waiting(bench.warmer) == 2
    until(lambda: bench.count("first") == SLICES)
    keys = [bench.key(name) for name in ("first", "second", "third")]
    order = [key for key, _ in cache.order]
    assert [order[CHUNK * n] for n in range(15)] == [keys[0], *[keys[1]] * 5, *[keys[2]] * 5, *[keys[0]] * 4]


def test_what_was_interrupted_goes_before_what_was_opened_earlier(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    with bench.device_taken():
        with bench.warmer._condition:  # so that the later one is taken up first
            bench.warmer.opened(bench.image("early"))
            bench.warmer.opened(bench.image("late"))
        until(lambda: bench.warmer.progress()["of"] == SLICES)
        bench.warmer.opened(bench.image("last"))
    until(lambda: bench.count("early") == SLICES)
    keys = [bench.key(name) for name in ("late", "last", "early")]
    order = [key for key, _ in cache.order]
    assert [order[CHUNK * n] for n in range(15)] == [keys[0], *[keys[1]] * 5, *[keys[0]] * 4, *[keys[2]] * 5]


def test_what_was_opened_longest_ago_is_forgotten(bench: Bench, cache: Watched) -> None:
    bench.warmer.start()
    with bench.device_taken():
        bench.warmer.opened(bench.image("a"))
        until(lambda: bench.warmer.progress()["of"] == SLICES)
        for number in range(MOST_WAITING + 2):
            bench.warmer.opened(bench.image(f"n{number}", slices=CHUNK))
        assert waiting(bench.warmer) == MOST_WAITING
    until(lambda: is_idle(bench.warmer))
    found = volumes_in_order(cache)
    assert found == [
        bench.key("a"),
        *(bench.key(f"n{number}") for number in range(MOST_WAITING + 1, 1, -1)),
    ]


def test_a_click_waits_for_one_chunk_and_not_for_the_volume(bench: Bench) -> None:
    slices = 400
    volume = bench.volumes.load(bench.image("long", slices))
    bench.warmer.start()
    bench.warmer.opened(bench.image("long", slices))
    until(lambda: bench.warmer.progress()["done"] > 0)
    bench.predictor.predict(
        volume, PromptSet(positive_ijk=((8, 8, 3),)), whole_object=False, asker=Asker("ann")
    )
    done, of = bench.predictor.warmed(volume)
    assert (done < of, of) == (True, slices)
    until(lambda: bench.predictor.warmed(volume) == (slices, slices))


def test_another_version_ends_what_is_under_way_and_begins_anew(bench: Bench, cache: Watched) -> None:
    upcoming = [bench.image("next"), bench.image("a")]
    bench.warmer.start(lambda: upcoming)
    bench.warmer.opened(bench.image("b"))
    until(lambda: bench.count("b") == SLICES and is_idle(bench.warmer))
    with bench.device_taken():
        bench.warmer.opened(bench.image("a"))
        until(lambda: bench.warmer.progress()["case"] == "a" and bench.warmer.progress()["of"] == SLICES)
        old = bench.predictor
        cache.order.clear()
        bench.publish()
        assert bench.serving.current().adapter_version == 1
    until(lambda: bench.count("next") == SLICES)
    assert bench.count("a") == bench.count("b") == SLICES
    assert old.warmed(bench.volumes.load(bench.image("a")))[0] == CHUNK
    assert old.warmed(bench.volumes.load(bench.image("next")))[0] == 0
    assert volumes_in_order(cache) == [bench.key(name) for name in ("a", "b", "next")]


def test_many_opened_images_do_not_crowd_out_the_upcoming_ones(bench: Bench, cache: Watched) -> None:
    upcoming = [bench.image("next")]
    bench.warmer.start(lambda: upcoming)
    names = [f"n{number}" for number in range(MOST_WAITING)]
    for name in names:
        bench.warmer.opened(bench.image(name, CHUNK))
    until(lambda: all(bench.count(name) == CHUNK for name in names) and is_idle(bench.warmer))
    cache.order.clear()
    bench.publish()
    bench.serving.current()
    until(lambda: bench.count("next") == SLICES)
    last = [bench.key(name) for name in names[:-5:-1]]
    assert volumes_in_order(cache) == [*last, bench.key("next")]


def test_upcoming_images_that_cannot_be_listed_keep_nothing_from_being_encoded(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def upcoming() -> list[Path]:
        raise OSError("no such folder")

    bench.warmer.start(upcoming)
    bench.publish()
    bench.serving.current()
    until(lambda: "upcoming cases are not encoded ahead" in caplog.text)
    bench.warmer.opened(bench.image("a"))
    until(lambda: bench.count("a") == SLICES)


def test_a_bad_file_is_named_once_and_the_next_image_is_encoded(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    bench.warmer.start()
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b"):
            bench.warmer.opened(bad)
            until(lambda: bench.warmer.progress()["case"] == "bad" and is_idle(bench.warmer))
            bench.warmer.opened(bench.image(name))
            until(lambda name=name: bench.count(name) == SLICES)
    assert caplog.text.count("case bad is not encoded ahead") == 1
    assert str(tmp_path) not in "".join(record.getMessage() for record in caplog.records)


def test_a_file_that_is_gone_is_left_out_without_a_word(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.warmer.start()
    bench.warmer.opened(tmp_path / "gone.nii.gz")
    bench.warmer.opened(bench.image("a"))
    until(lambda: bench.count("a") == SLICES and is_idle(bench.warmer))
    assert "gone" not in caplog.text


def test_a_cache_that_is_too_small_is_filled_once(tiny_model: MedSA, tmp_path: Path) -> None:
    cache = Watched(2 * CHUNK * SLICE_BYTES)
    bench = Bench(tiny_model, tmp_path, cache)
    bench.serving.current()
    bench.warmer.start()
    bench.warmer.opened(bench.image("a"))
    until(lambda: bench.warmer.progress()["of"] == SLICES and is_idle(bench.warmer))
    assert chunks(cache, bench.key("a")) == [2, 3, 1]
    assert len(cache.order) == 3 * CHUNK


def test_progress_names_the_case_and_counts_its_slices(bench: Bench) -> None:
    assert bench.warmer.progress() == {"case": None, "done": 0, "of": 0, "waiting": 0}
    bench.warmer.start()
    with bench.device_taken():
        bench.warmer.opened(bench.image("a"))
        until(lambda: bench.warmer.progress() == {"case": "a", "done": 0, "of": SLICES, "waiting": 0})
        bench.warmer.opened(bench.image("b.c"))
        assert bench.warmer.progress()["waiting"] == 1
    until(lambda: is_idle(bench.warmer))
    assert bench.warmer.progress() == {"case": "a", "done": SLICES, "of": SLICES, "waiting": 0}
    bench.warmer.opened(bench.image("b.c"))
    until(lambda: bench.warmer.progress() == {"case": "b.c", "done": SLICES, "of": SLICES, "waiting": 0})


def test_one_that_was_not_started_does_nothing(bench: Bench, cache: Watched) -> None:
    bench.warmer.opened(bench.image("a"))
    bench.warmer.clicked(bench.image("a"), 3, encoded=True)
    assert bench.warmer.progress() == {"case": None, "done": 0, "of": 0, "waiting": 0}
    assert "medsa-warming" not in {thread.name for thread in threading.enumerate() if not thread.daemon}
    assert cache.order == []
