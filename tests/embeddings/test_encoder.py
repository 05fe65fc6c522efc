"""The encoding of slices in fixed chunks, in turns, and what an embedding's key depends on."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.embeddings import (
    STORED_DTYPE,
    DiskCache,
    EmbeddingCache,
    SliceEncoder,
    SliceKey,
    VolumeEmbeddings,
    slab_lengths,
)
from lib.errors import ClientGoneError
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.transforms.geometry import take_planes
from lib.transforms.intensity import intensity_window, to_model_range
from lib.turns import Asker, DeviceTurns, Turn
from lib.volume import Volume

CPU = torch.device("cpu")


def volume_of(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
    return Volume(array, np.diag([1.0, 1.0, 2.0, 1.0]))


def encoder_of(model: MedSA, cache: EmbeddingCache, model_key: str = "m") -> SliceEncoder:
    return SliceEncoder(model, model_key, IntensitySettings(), cache, CPU)


def fetch(opened: VolumeEmbeddings, indices: Sequence[int], turns: DeviceTurns | None = None) -> torch.Tensor:
    """One fetch in a turn of its own; `turns` None: of a device nobody else uses."""
    with (turns or DeviceTurns()).turn(Asker()) as turn:
        return opened.fetch(indices, turn)


class NotedTurn(Turn):
    """A turn that counts how often it gave way; meanwhile `others` do what they do."""

    def __init__(self, others: Callable[[], object] = lambda: None) -> None:
        self.given, self.others = 0, others

    def give_way(self) -> None:
        self.given += 1
        self.others()


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


def test_embeddings_are_the_models_own(tiny_model: MedSA) -> None:
    volume = volume_of((20, 16, 20))
    volume.array[:, :, 10:] *= 3  # the chunks' own statistics are not the volume's
    embeddings = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume, "k")
    fetched = fetch(embeddings, [19, 0])
    planes = take_planes(to_model_range(volume.array, IntensitySettings()), 2, range(20))
    with torch.inference_mode():
        expected = tiny_model.encode(embeddings.geometry.planes_to_model(torch.from_numpy(planes)))
    assert fetched.dtype == torch.float32
    torch.testing.assert_close(fetched, expected[[19, 0]], atol=2e-3, rtol=2e-3)  # float16 keeps 11 bits
    assert not torch.allclose(fetched[0], fetched[1], atol=0.1, rtol=0.1)


def test_slices_are_encoded_once_in_aligned_chunks_and_only_where_asked(tiny_model: MedSA) -> None:
    embeddings = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume_of((12, 12, 20)), "k")
    with encoded_slices(tiny_model) as calls:
        fetch(embeddings, [9])
        assert calls == [8]
        fetch(embeddings, [15, 8, 9])
        assert calls == [8]
        fetch(embeddings, [17, 1])
        assert calls == [8, 8, 4]
    assert embeddings.encode_seconds > 0


def test_one_turn_gives_way_between_chunks_and_not_before_the_first(tiny_model: MedSA) -> None:
    opened = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume_of((8, 8, 32)), "k")
    turn = NotedTurn()
    opened.fetch([0], turn)
    assert turn.given == 0
    opened.fetch([1, 2], turn)
    assert turn.given == 0
    opened.fetch([9], turn)
    assert turn.given == 1
    opened.fetch([17, 30], turn)
    assert turn.given == 3
    fresh = NotedTurn()
    encoder_of(tiny_model, EmbeddingCache(0)).open(opened.volume, "k").fetch([0, 9], fresh)
    assert fresh.given == 1


def test_the_next_turn_of_a_request_does_not_begin_by_giving_way(tiny_model: MedSA) -> None:
    opened = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume_of((8, 8, 32)), "k")
    turns = [NotedTurn(), NotedTurn()]
    opened.fetch([0], turns[0])
    opened.fetch([9], turns[1])
    assert [turn.given for turn in turns] == [0, 0]


def test_what_others_encoded_while_it_gave_way_is_not_encoded_again(tiny_model: MedSA) -> None:
    encoder = encoder_of(tiny_model, EmbeddingCache(1 << 24))
    volume = volume_of((8, 8, 24))
    turn = NotedTurn(lambda: fetch(encoder.open(volume, "k"), [9, 17]))
    with encoded_slices(tiny_model) as calls:
        fetched = encoder.open(volume, "k").fetch([0, 9, 17], turn)
    assert calls == [8, 8, 8]
    assert turn.given == 2
    assert torch.equal(
        fetched, fetch(encoder_of(tiny_model, EmbeddingCache(0)).open(volume, "k"), [0, 9, 17])
    )


def test_a_client_that_left_while_it_gave_way_ends_the_encoding(tiny_model: MedSA) -> None:
    def leave() -> None:
        raise ClientGoneError("gone")

    opened = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume_of((8, 8, 24)), "k")
    with encoded_slices(tiny_model) as calls, pytest.raises(ClientGoneError):
        opened.fetch([0, 9, 17], NotedTurn(leave))
    assert calls == [8]
    assert opened.missing(range(24)) == list(range(8, 24))


def test_missing_slices_are_those_neither_in_memory_nor_on_disk(tiny_model: MedSA, tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 1 << 24)
    one_slice = 256 * 4 * 4 * 2
    cache = EmbeddingCache(one_slice, disk)
    opened = encoder_of(tiny_model, cache).open(volume_of((8, 8, 20)), "k")
    assert opened.missing([19, 3]) == [19, 3]
    fetch(opened, [9])
    assert opened.missing(range(20)) == [*range(8), *range(16, 20)]
    assert cache.stats().slices == 1
    before = cache.stats()
    opened.missing(range(20))
    assert (cache.stats().hits, cache.stats().misses) == (before.hits, before.misses)


def test_a_restart_finds_on_disk_what_was_encoded(tiny_model: MedSA, tmp_path: Path) -> None:
    volume = volume_of((8, 8, 20))
    disk = DiskCache(tmp_path, 1 << 24)
    first = fetch(encoder_of(tiny_model, EmbeddingCache(1 << 24, disk)).open(volume, "k"), range(20))
    disk.flush()
    cache = EmbeddingCache(1 << 24, DiskCache(tmp_path, 1 << 24))
    opened = encoder_of(tiny_model, cache).open(volume, "k")
    with encoded_slices(tiny_model) as calls:
        assert opened.missing(range(20)) == []
        assert torch.equal(fetch(opened, range(20)), first)
    assert calls == []
    assert opened.encode_seconds == 0
    assert (cache.stats().disk_hits, cache.stats().misses) == (20, 0)


def test_a_damaged_file_is_encoded_anew_and_replaced(tiny_model: MedSA, tmp_path: Path) -> None:
    volume = volume_of((8, 8, 8))
    disk = DiskCache(tmp_path, 1 << 24)
    first = fetch(encoder_of(tiny_model, EmbeddingCache(0, disk)).open(volume, "k"), range(8))
    disk.flush()
    victim = sorted(tmp_path.rglob("*.safetensors"))[3]
    content = bytearray(victim.read_bytes())
    content[-100] ^= 4
    victim.write_bytes(content)
    disk = DiskCache(tmp_path, 1 << 24)
    with encoded_slices(tiny_model) as calls:
        opened = encoder_of(tiny_model, EmbeddingCache(0, disk)).open(volume, "k")
        assert torch.equal(fetch(opened, range(8)), first)
        disk.flush()
        assert torch.equal(fetch(opened, range(8)), first)
    assert calls == [8]
    assert victim.read_bytes()[-100] == content[-100] ^ 4


def test_without_memory_a_request_still_encodes_no_chunk_twice(tiny_model: MedSA, tmp_path: Path) -> None:
    opened = encoder_of(tiny_model, EmbeddingCache(0, DiskCache(tmp_path, 1 << 24))).open(
        volume_of((8, 8, 16)), "k"
    )
    with encoded_slices(tiny_model) as calls:
        for index in range(16):
            fetch(opened, [index])
    assert calls == [8, 8]


def counted_windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the arrays whose intensity window is computed."""
    shapes: list[tuple[int, ...]] = []

    def noted(array: np.ndarray, settings: IntensitySettings) -> tuple[float, float]:
        shapes.append(array.shape)
        return intensity_window(array, settings)

    monkeypatch.setattr("lib.embeddings.encoder.intensity_window", noted)
    return shapes


def test_the_window_is_that_of_the_whole_volume_and_computed_once(
    tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = counted_windows(monkeypatch)
    encoder = encoder_of(tiny_model, EmbeddingCache(0))
    volume = volume_of((8, 8, 20))
    opened = encoder.open(volume, "k")
    opened.prepare()
    assert shapes == [(8, 8, 20)]
    fetch(opened, range(20))
    again = encoder.open(Volume(volume.array.copy(), volume.affine.copy()), "i")
    again.prepare()
    fetch(again, [0])
    assert shapes == [(8, 8, 20)]
    encoder.open(volume_of((8, 8, 20), seed=1), "k").prepare()
    assert shapes == [(8, 8, 20)] * 2


def test_preparing_reads_no_volume_that_is_all_cached(
    tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, volume = EmbeddingCache(1 << 24), volume_of((8, 8, 16))
    fetch(encoder_of(tiny_model, cache).open(volume, "k"), range(16))
    shapes = counted_windows(monkeypatch)
    encoder_of(tiny_model, cache).open(volume, "k").prepare()
    assert shapes == []
    encoder_of(tiny_model, cache).open(volume, "i").prepare()
    assert shapes == [(8, 8, 16)]


def test_preparing_is_not_needed(tiny_model: MedSA) -> None:
    volume = volume_of((8, 8, 4))
    prepared, not_prepared = (encoder_of(tiny_model, EmbeddingCache(0)).open(volume, "k") for _ in range(2))
    prepared.prepare()
    assert torch.equal(fetch(prepared, [2]), fetch(not_prepared, [2]))


def test_only_the_windows_of_the_last_volumes_are_kept(
    tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.embeddings.encoder.KEPT_WINDOWS", 2)
    shapes = counted_windows(monkeypatch)
    encoder = encoder_of(tiny_model, EmbeddingCache(0))
    volumes = [volume_of((4, 4, 4), seed=seed) for seed in range(3)]
    for volume in volumes:
        encoder.window(volume)
    encoder.window(volumes[1])
    assert len(shapes) == 3
    encoder.window(volumes[0])
    assert len(shapes) == 4


def base_key(model: MedSA) -> str:
    return encoder_of(model, EmbeddingCache(0)).full_key


def test_the_key_is_the_same_for_the_same_model(tiny_model: MedSA) -> None:
    assert base_key(tiny_model) == base_key(tiny_model)


def test_the_key_names_the_weights(tiny_model: MedSA) -> None:
    assert encoder_of(tiny_model, EmbeddingCache(0), "other").full_key != base_key(tiny_model)


@pytest.mark.parametrize(
    "settings",
    [
        IntensitySettings(percentiles=(1, 99.5)),
        IntensitySettings(kind="window", window_hu=(0, 1)),
        IntensitySettings(kind="window", window_hu=(0, 2)),
    ],
)
def test_the_key_names_the_intensity_window(tiny_model: MedSA, settings: IntensitySettings) -> None:
    keys = {base_key(tiny_model)}
    for other in (settings, IntensitySettings(kind="window", window_hu=(0, 3))):
        keys.add(SliceEncoder(tiny_model, "m", other, EmbeddingCache(0), CPU).full_key)
    assert len(keys) == 3


def test_the_key_names_the_image_size(tiny_model: MedSA, tiny_spec: BaseSpec) -> None:
    spec = replace(tiny_spec, image_size=80)
    assert base_key(MedSA(build_sam(spec), spec, None)) != base_key(
        MedSA(build_sam(tiny_spec), tiny_spec, None)
    )


def test_the_key_names_the_precision(tiny_model: MedSA) -> None:
    before = base_key(tiny_model)
    tiny_model.use_bfloat16()
    assert base_key(tiny_model) != before


def test_the_key_names_the_kind_of_device(tiny_model: MedSA) -> None:
    # No GPU is asked for anything: the encoder is only made.
    other = SliceEncoder(tiny_model, "m", IntensitySettings(), EmbeddingCache(0), torch.device("cuda"))
    assert other.chunk == encoder_of(tiny_model, EmbeddingCache(0)).chunk
    assert other.full_key != base_key(tiny_model)


def test_the_key_names_the_chunk(tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_key(tiny_model)
    monkeypatch.setattr("lib.embeddings.encoder.MAX_CHUNK_SLICES", 4)
    assert base_key(tiny_model) != before


def test_the_key_names_the_slab(deep_model: MedSA, tiny_spec: BaseSpec) -> None:
    dims = replace(deep_model.dims, depth=9)  # type: ignore[type-var]
    other = MedSA(deep_model.sam, tiny_spec, dims, ("object",))
    other.trained = True
    assert (other.slab, deep_model.slab) == (9, 3)
    assert encoder_of(other, EmbeddingCache(0)).chunk == encoder_of(deep_model, EmbeddingCache(0)).chunk
    assert base_key(other) != base_key(deep_model)


@pytest.mark.parametrize("name", ["VERSION", "ENCODING"])
def test_the_key_names_the_code(tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = base_key(tiny_model)
    monkeypatch.setattr(f"lib.embeddings.encoder.{name}", "next")
    assert base_key(tiny_model) != before


def test_another_model_key_axis_or_volume_is_encoded_anew(tiny_model: MedSA) -> None:
    cache = EmbeddingCache(1 << 24)
    volume = volume_of((8, 8, 8))
    fetch(encoder_of(tiny_model, cache).open(volume, "k"), [0])
    with encoded_slices(tiny_model) as calls:
        fetch(encoder_of(tiny_model, cache).open(Volume(volume.array.copy(), volume.affine.copy()), "k"), [0])
        assert calls == []
        fetch(encoder_of(tiny_model, cache, "other").open(volume, "k"), [0])
        fetch(encoder_of(tiny_model, cache).open(volume, "i"), [0])
        fetch(encoder_of(tiny_model, cache).open(volume_of((8, 8, 8), seed=1), "k"), [0])
        assert calls == [8, 8, 8]


def test_the_answer_is_the_same_cached_or_not_and_with_a_cache_that_keeps_nothing(tiny_model: MedSA) -> None:
    volume = volume_of((12, 10, 11))
    cached = encoder_of(tiny_model, EmbeddingCache(1 << 24)).open(volume, "k")
    uncached = encoder_of(tiny_model, EmbeddingCache(0)).open(volume, "k")
    first = fetch(cached, [3, 9])
    assert torch.equal(fetch(cached, [3, 9]), first)
    assert torch.equal(fetch(uncached, [9, 3]), first[[1, 0]])


def test_kept_embeddings_are_half_as_large_and_own_their_memory(tiny_model: MedSA) -> None:
    cache = EmbeddingCache(1 << 24)
    embeddings = encoder_of(tiny_model, cache).open(volume_of((8, 8, 3)), "k")
    fetch(embeddings, [0])
    stored = cache.get(SliceKey(embeddings.volume.content_key, embeddings.encoder.full_key, 2, 1))
    assert stored is not None
    assert stored.dtype == STORED_DTYPE
    assert stored.untyped_storage().nbytes() == stored.nbytes
    assert cache.stats().used_bytes == 3 * 256 * 4 * 4 * 2


def test_requests_for_one_volume_at_a_time_encode_it_once(tiny_model: MedSA) -> None:
    encoder = encoder_of(tiny_model, EmbeddingCache(1 << 24))
    turns = DeviceTurns()
    volume = volume_of((12, 12, 16))
    results: dict[int, torch.Tensor] = {}
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        opened = encoder.open(volume, "k")
        gate.wait()
        results[number] = fetch(opened, range(16), turns)

    with encoded_slices(tiny_model) as calls:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert calls == [8, 8]
    assert all(torch.equal(results[number], results[0]) for number in range(4))


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
        fetch(embeddings, [10])
        assert calls == [(3, 3, 3)]
        fetch(embeddings, [19, 0])
        assert calls == [(3, 3, 3), (3, 3, 3), (2,)]


def test_a_slice_sees_its_slab_and_no_other(deep_model: MedSA) -> None:
    volume = volume_of((12, 12, 10))
    fetched = fetch(encoder_of(deep_model, EmbeddingCache(1 << 24)).open(volume, "k"), range(10))
    other = volume.array.copy()
    other[:, :, 4] = other[::-1, :, 4]
    changed = Volume(other, volume.affine)
    after = fetch(encoder_of(deep_model, EmbeddingCache(1 << 24)).open(changed, "k"), range(10))
    touched = [index for index in range(10) if not torch.allclose(fetched[index], after[index], atol=1e-2)]
    assert touched == [3, 4, 5]


def test_the_first_slice_asked_for_changes_nothing(deep_model: MedSA) -> None:
    volume = volume_of((12, 12, 11))
    results = []
    for order in ([0, 5, 10], [10, 5, 0], [5, 4, 0, 10]):
        opened = encoder_of(deep_model, EmbeddingCache(1 << 24)).open(volume, "k")
        for index in order:
            fetch(opened, [index])
        results.append(fetch(opened, range(11)))
    kept_nothing = encoder_of(deep_model, EmbeddingCache(0)).open(volume, "k")
    results.append(torch.cat([fetch(kept_nothing, [index]) for index in range(11)]))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_an_untrained_model_encodes_slice_by_slice_and_a_trained_one_from_then_on_in_slabs(
    deep_model: MedSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = deep_model.adapter_state()
    deep_model = deep_model.sibling()
    encoder = encoder_of(deep_model, EmbeddingCache(0))
    embeddings = encoder.open(volume_of((12, 12, 9)), "k")
    with encoded_depths(deep_model, monkeypatch) as calls:
        fetch(embeddings, [0])
        deep_model.load_adapter_state(state)
        fetch(embeddings, [0])
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
