"""The embedding cache, and the encoding of slices in fixed chunks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lib.embeddings import (
    STORED_DTYPE,
    EmbeddingCache,
    SliceEncoder,
    SliceKey,
    VolumeEmbeddings,
    has_fast_bfloat16,
)
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.transforms.geometry import take_planes
from lib.transforms.intensity import to_model_range
from lib.volume import Volume

CPU = torch.device("cpu")


def key(index: int, volume: str = "v", model: str = "m", axis: int = 2) -> SliceKey:
    return SliceKey(volume, model, axis, index)


def embedding(value: float, count: int = 10) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float32)


def volume_of(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
    return Volume(array, np.diag([1.0, 1.0, 2.0, 1.0]))


def encoder_of(model: MedSA, cache: EmbeddingCache, model_key: str = "m") -> SliceEncoder:
    return SliceEncoder(model, model_key, IntensitySettings(), cache, CPU, threading.Lock())


@contextmanager
def encoded_slices(model: MedSA) -> Iterator[list[int]]:
    """Collects how many slices each call of the encoder got."""
    calls: list[int] = []
    hook = model.sam.image_encoder.patch_embed.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    try:
        yield calls
    finally:
        hook.remove()


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


def test_embeddings_are_the_models_own(tiny_model: MedSA) -> None:
    volume = volume_of((20, 16, 5))
    embeddings = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume, "k")
    fetched = embeddings.fetch([4, 0])
    planes = take_planes(to_model_range(volume.array, IntensitySettings()), 2, range(5))
    with torch.inference_mode():
        expected = tiny_model.encode(embeddings.geometry.planes_to_model(torch.from_numpy(planes)))
    assert fetched.dtype == torch.float32
    # bfloat16 keeps 8 bits, and rounds at every layer.
    torch.testing.assert_close(fetched, expected[[4, 0]], atol=0.1, rtol=0.1)
    assert not torch.allclose(fetched[0], fetched[1], atol=0.1, rtol=0.1)


def test_slices_are_encoded_once_in_aligned_chunks_and_only_where_asked(tiny_model: MedSA) -> None:
    embeddings = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume_of((12, 12, 20)), "k")
    with encoded_slices(tiny_model) as calls:
        embeddings.fetch([9])
        assert calls == [8]
        embeddings.fetch([15, 8, 9])
        assert calls == [8]
        embeddings.fetch([17, 1])
        assert calls == [8, 8, 4]
    assert embeddings.encode_seconds > 0


def test_another_model_key_axis_or_volume_is_encoded_anew(tiny_model: MedSA) -> None:
    cache = EmbeddingCache(1 << 24)
    volume = volume_of((8, 8, 8))
    encoder_of(tiny_model, cache).open(volume, "k").fetch([0])
    with encoded_slices(tiny_model) as calls:
        encoder_of(tiny_model, cache).open(Volume(volume.array.copy(), volume.affine.copy()), "k").fetch([0])
        assert calls == []
        encoder_of(tiny_model, cache, "other").open(volume, "k").fetch([0])
        encoder_of(tiny_model, cache).open(volume, "i").fetch([0])
        encoder_of(tiny_model, cache).open(volume_of((8, 8, 8), seed=1), "k").fetch([0])
        assert calls == [8, 8, 8]


def test_the_answer_is_the_same_cached_or_not_and_with_a_cache_that_keeps_nothing(tiny_model: MedSA) -> None:
    volume = volume_of((12, 10, 11))
    cached = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume, "k")
    uncached = encoder_of(tiny_model, EmbeddingCache(0)).open(volume, "k")
    first = cached.fetch([3, 9])
    assert torch.equal(cached.fetch([3, 9]), first)
    assert torch.equal(uncached.fetch([9, 3]), first[[1, 0]])


def test_kept_embeddings_are_half_as_large_and_own_their_memory(tiny_model: MedSA) -> None:
    cache = EmbeddingCache(1 << 24)
    embeddings = encoder_of(tiny_model, cache).open(volume_of((8, 8, 3)), "k")
    embeddings.fetch([0])
    stored = cache.get(SliceKey(embeddings.volume.content_key, "m", 2, 1))
    assert stored is not None
    assert stored.dtype == STORED_DTYPE
    assert stored.untyped_storage().nbytes() == stored.nbytes
    assert cache.stats().used_bytes == 3 * 256 * 4 * 4 * 2


def test_requests_for_one_volume_at_a_time_encode_it_once(tiny_model: MedSA) -> None:
    encoder = encoder_of(tiny_model, EmbeddingCache(1 << 24))
    volume = volume_of((12, 12, 16))
    results: dict[int, torch.Tensor] = {}
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        opened = encoder.open(volume, "k")
        gate.wait()
        results[number] = opened.fetch(range(16))

    with encoded_slices(tiny_model) as calls:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls == [8, 8]
    assert all(torch.equal(results[number], results[0]) for number in range(4))


def test_only_the_last_volume_in_model_range_is_kept(tiny_model: MedSA) -> None:
    encoder = encoder_of(tiny_model, EmbeddingCache(0))
    first, second = volume_of((6, 6, 6)), volume_of((6, 6, 6), seed=1)
    rescaled = encoder.in_model_range(first)
    assert encoder.in_model_range(first) is rescaled
    assert not np.array_equal(encoder.in_model_range(second), rescaled)
    assert np.array_equal(encoder.in_model_range(first), rescaled)
    assert encoder.in_model_range(first) is not rescaled


@pytest.mark.parametrize(("choice", "axis", "count"), [("auto", 2, 9), ("i", 0, 7), ("j", 1, 8), ("k", 2, 9)])
def test_axis_and_number_of_slices(tiny_model: MedSA, choice: str, axis: int, count: int) -> None:
    opened: VolumeEmbeddings = encoder_of(tiny_model, EmbeddingCache(0)).open(volume_of((7, 8, 9)), choice)  # type: ignore[arg-type]
    assert (opened.axis, opened.slice_count) == (axis, count)


def test_bfloat16_is_used_where_the_processor_has_it() -> None:
    expected = torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")
    assert has_fast_bfloat16(CPU) is bool(expected)
