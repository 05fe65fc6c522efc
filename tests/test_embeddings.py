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
    slab_lengths,
)
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
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
    torch.testing.assert_close(fetched, expected[[4, 0]], atol=2e-3, rtol=2e-3)  # float16 keeps 11 bits
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


@pytest.fixture
def deep_model(tiny_spec: BaseSpec) -> MedSA:
    """A tiny model that looks at three slices together, with random adapters that count as trained."""
    dims = AdapterDims(
        encoder_width=4, decoder_width=8, hyper_width=8, prompt_rank=4, hyper_layers=2, depth=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MedSA(build_sam(tiny_spec), tiny_spec, dims, ("object",)).eval()
        with torch.no_grad():
            for parameter in model.adapters.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.trained = True
    return model


@contextmanager
def encoded_depths(model: MedSA, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...] | None]]:
    """Collects the slabs that each call of `MedSA.encode` was told of."""
    calls: list[tuple[int, ...] | None] = []
    encode = model.encode

    def noted(planes: torch.Tensor, depths: tuple[int, ...] | None = None) -> torch.Tensor:
        calls.append(depths)
        return encode(planes, depths)

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", noted)
        yield calls


@pytest.mark.parametrize(
    ("count", "slab", "lengths"),
    [(9, 3, (3, 3, 3)), (8, 3, (3, 3, 2)), (7, 3, (3, 3, 1)), (2, 3, (2,)), (3, 1, (1, 1, 1))],
)
def test_slabs_fill_a_chunk_and_the_last_may_be_shorter(
    count: int, slab: int, lengths: tuple[int, ...]
) -> None:
    assert slab_lengths(count, slab) == lengths


def test_chunks_are_whole_slabs_and_only_the_tail_is_shorter(
    deep_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = encoder_of(deep_model, EmbeddingCache(1 << 24)).open(volume_of((12, 12, 20)), "k")
    with encoded_depths(deep_model, monkeypatch) as calls:
        embeddings.fetch([10])
        assert calls == [(3, 3, 3)]
        embeddings.fetch([19, 0])
        assert calls == [(3, 3, 3), (3, 3, 3), (2,)]


def test_a_slice_sees_its_slab_and_no_other(deep_model: MedSA) -> None:
    volume = volume_of((12, 12, 10))
    fetched = encoder_of(deep_model, EmbeddingCache(1 << 24)).open(volume, "k").fetch(range(10))
    other = volume.array.copy()
    other[:, :, 4] = other[::-1, :, 4]
    changed = Volume(other, volume.affine)
    after = encoder_of(deep_model, EmbeddingCache(1 << 24)).open(changed, "k").fetch(range(10))
    touched = [index for index in range(10) if not torch.allclose(fetched[index], after[index], atol=1e-2)]
    assert touched == [3, 4, 5]


def test_the_first_slice_asked_for_changes_nothing(deep_model: MedSA) -> None:
    volume = volume_of((12, 12, 11))
    results = []
    for order in ([0, 5, 10], [10, 5, 0], [5, 4, 0, 10]):
        opened = encoder_of(deep_model, EmbeddingCache(1 << 24)).open(volume, "k")
        for index in order:
            opened.fetch([index])
        results.append(opened.fetch(range(11)))
    kept_nothing = encoder_of(deep_model, EmbeddingCache(0)).open(volume, "k")
    results.append(torch.cat([kept_nothing.fetch([index]) for index in range(11)]))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_an_untrained_model_encodes_slice_by_slice_and_a_trained_one_from_then_on_in_slabs(
    deep_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = deep_model.adapter_state()
    deep_model = deep_model.sibling()
    encoder = encoder_of(deep_model, EmbeddingCache(0))
    embeddings = encoder.open(volume_of((12, 12, 9)), "k")
    with encoded_depths(deep_model, monkeypatch) as calls:
        embeddings.fetch([0])
        deep_model.load_adapter_state(state)
        embeddings.fetch([0])
    assert calls == [(1,) * 8, (3, 3, 3)]


def test_a_slab_beyond_the_usual_chunk_is_encoded_whole(tiny_spec: BaseSpec) -> None:
    dims = AdapterDims(
        encoder_width=4, decoder_width=8, hyper_width=8, prompt_rank=4, hyper_layers=2, depth=11
    )
    model = MedSA(build_sam(tiny_spec), tiny_spec, dims, ("object",)).eval()
    encoder = encoder_of(model, EmbeddingCache(0))
    assert encoder.chunk == 8
    model.trained = True
    assert encoder.chunk == 11
