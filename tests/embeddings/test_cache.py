"""The embedding cache: memory first, then the disk."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.embeddings import DiskCache, EmbeddingCache, SliceKey


def key(index: int, volume: str = "v", model: str = "m", axis: int = 2) -> SliceKey:
    return SliceKey(volume, model, axis, index)


def embedding(value: float, count: int = 10) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float32)


def test_what_was_put_is_found_under_its_own_key_only() -> None:
    cache = EmbeddingCache(1000)
    cache.put(key(3), embedding(1.0))
    found = cache.get(key(3))
    assert found is not None
    assert torch.equal(found, embedding(1.0))
    for other in (key(4), key(3, volume="w"), key(3, model="n"), key(3, axis=1)):
        assert cache.get(other) is None


def test_the_least_recently_used_slice_goes_first() -> None:
    cache = EmbeddingCache(80)
    cache.put(key(0), embedding(0.0))
    cache.put(key(1), embedding(1.0))
    cache.get(key(0))
    cache.put(key(2), embedding(2.0))
    assert cache.get(key(1)) is None
    assert cache.get(key(0)) is not None
    assert cache.get(key(2)) is not None


def test_the_bound_holds_and_the_counts_add_up() -> None:
    cache = EmbeddingCache(100)
    for index in range(7):
        cache.put(key(index), embedding(float(index)))
    cache.put(key(6), embedding(6.5))
    cache.get(key(6))
    cache.get(key(0))
    stats = cache.stats()
    assert (stats.slices, stats.used_bytes, stats.max_bytes) == (2, 80, 100)
    assert (stats.hits, stats.misses, stats.evictions) == (1, 1, 5)


def test_what_exceeds_the_bound_alone_is_not_kept_and_evicts_nothing() -> None:
    cache = EmbeddingCache(60)
    cache.put(key(0), embedding(0.0))
    cache.put(key(1), embedding(1.0, count=16))
    assert cache.get(key(0)) is not None
    assert cache.get(key(1)) is None


def test_peek_neither_counts_nor_makes_younger() -> None:
    cache = EmbeddingCache(80)
    cache.put(key(0), embedding(0.0))
    cache.put(key(1), embedding(1.0))
    assert cache.peek(key(0)) is not None
    assert cache.peek(key(9)) is None
    cache.put(key(2), embedding(2.0))
    assert cache.peek(key(0)) is None
    assert (cache.stats().hits, cache.stats().misses) == (0, 0)


def test_threads_keep_the_books_right() -> None:
    cache = EmbeddingCache(40 * 8)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index in rng.integers(0, 30, 400).tolist():
            if cache.get(key(index)) is None:
                cache.put(key(index), embedding(float(index)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    kept = [cache.peek(key(index)) for index in range(30)]
    assert stats.hits + stats.misses == 1600
    assert stats.slices == 8 == sum(entry is not None for entry in kept)
    assert stats.used_bytes == 40 * 8
    assert all(entry is None or entry[0] == index for index, entry in enumerate(kept))


@pytest.fixture
def disk(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "embeddings", 1 << 20)


def test_what_left_memory_comes_back_from_disk_into_memory(disk: DiskCache) -> None:
    cache = EmbeddingCache(80, disk)
    for index in range(4):
        cache.put(key(index), embedding(float(index)))
    disk.flush()
    found = cache.get(key(0))
    assert found is not None
    assert torch.equal(found, embedding(0.0))
    again = cache.get(key(0))
    assert again is not None
    assert torch.equal(again, found)
    assert again is cache.get(key(0))
    stats = cache.stats()
    assert (stats.hits, stats.disk_hits, stats.misses, stats.slices) == (2, 1, 0, 2)
    assert stats.disk is not None
    assert stats.disk.written == 4


def test_a_miss_is_one_in_memory_and_on_disk(disk: DiskCache) -> None:
    cache = EmbeddingCache(80, disk)
    assert cache.get(key(0)) is None
    assert (cache.stats().hits, cache.stats().disk_hits, cache.stats().misses) == (0, 0, 1)


def test_with_no_memory_the_disk_alone_answers(disk: DiskCache) -> None:
    cache = EmbeddingCache(0, disk)
    cache.put(key(0), embedding(1.0))
    for _ in range(2):
        found = cache.get(key(0))
        assert found is not None
        assert torch.equal(found, embedding(1.0))
    stats = cache.stats()
    assert (stats.hits, stats.disk_hits, stats.slices, stats.used_bytes) == (0, 2, 0, 0)


def test_contains_and_peek_look_at_both_and_count_nothing(disk: DiskCache) -> None:
    cache = EmbeddingCache(40, disk)
    cache.put(key(0), embedding(0.0))
    cache.put(key(1), embedding(1.0))
    disk.flush()
    assert [cache.contains(key(index)) for index in range(3)] == [True, True, False]
    found = cache.peek(key(0))
    assert found is not None
    assert torch.equal(found, embedding(0.0))
    assert cache.peek(key(2)) is None
    stats = cache.stats()
    assert (stats.hits, stats.disk_hits, stats.misses, stats.slices) == (0, 0, 0, 1)


def test_contains_makes_no_slice_younger() -> None:
    cache = EmbeddingCache(80)
    cache.put(key(0), embedding(0.0))
    cache.put(key(1), embedding(1.0))
    assert cache.contains(key(0))
    cache.put(key(2), embedding(2.0))
    assert not cache.contains(key(0))
    assert cache.contains(key(1))


@pytest.mark.parametrize(
    ("max_bytes", "has_disk", "off"), [(0, False, True), (1, False, False), (0, True, False)]
)
def test_off_is_what_keeps_nothing(disk: DiskCache, max_bytes: int, has_disk: bool, off: bool) -> None:
    assert EmbeddingCache(max_bytes, disk if has_disk else None).is_off == off


def test_threads_get_the_right_slices_from_memory_and_disk(disk: DiskCache) -> None:
    cache = EmbeddingCache(40 * 4, disk)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index in rng.integers(0, 20, 200).tolist():
            found = cache.get(key(index))
            if found is None:
                cache.put(key(index), embedding(float(index)))
            elif not torch.equal(found, embedding(float(index))):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.flush()
    stats = cache.stats()
    assert wrong == []
    assert stats.hits + stats.disk_hits + stats.misses == 800
    assert stats.disk_hits > 0
    assert stats.used_bytes <= 160
    assert all(disk.contains(key(index)) for index in range(20))
