"""Embeddings on disk: kept over a restart, bounded, shared, and never in the way when something is wrong."""

import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lib
from lib.embeddings import DiskCache, SliceKey
from lib.embeddings import disk as disk_module

KEY = SliceKey("v" * 64, "a model", 2, 7)
LARGE = 1 << 24


def key(index: int, model: str = "a model") -> SliceKey:
    return SliceKey("v" * 64, model, 2, index)


def embedding(seed: int = 0, shape: tuple[int, ...] = (8, 4, 4)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).half()


def written(folder: Path, *keys: SliceKey, max_bytes: int = LARGE) -> DiskCache:
    """A cache with an embedding for each key, seeded by its index."""
    disk = DiskCache(folder, max_bytes)
    for one in keys:
        disk.put(one, embedding(one.index))
    disk.flush()
    return disk


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def file_size(folder: Path) -> int:
    """Bytes of one file."""
    written(folder, KEY)
    return files(folder)[0].stat().st_size


def equal(found: torch.Tensor | None, expected: torch.Tensor) -> bool:
    return found is not None and found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_was_put_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    disk = DiskCache(tmp_path, LARGE)
    whole = embedding(shape=(3, 8, 4, 4)).to(dtype)
    disk.put(KEY, whole[1])
    disk.flush()
    assert equal(DiskCache(tmp_path, LARGE).get(KEY), whole[1])


def test_what_is_read_owns_its_memory_and_no_more(tmp_path: Path) -> None:
    disk = written(tmp_path, KEY)
    found = disk.get(KEY)
    disk._path(KEY).write_bytes(b"")
    assert found is not None
    assert found.untyped_storage().nbytes() == found.nbytes
    assert equal(found, embedding(7))


def test_a_file_is_plain_safetensors_with_the_whole_key(tmp_path: Path) -> None:
    written(tmp_path, KEY)
    (path,) = files(tmp_path)
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    assert equal(load_file(path)["embedding"], embedding(7))
    assert metadata.pop("checksum")
    assert metadata == {"volume": "v" * 64, "model": "a model", "axis": "2", "index": "7"}


@pytest.mark.parametrize(
    "other",
    [
        SliceKey("w" * 64, "a model", 2, 7),
        SliceKey("v" * 64, "another", 2, 7),
        SliceKey("v" * 64, "a model", 1, 7),
        SliceKey("v" * 64, "a model", 2, 8),
    ],
)
def test_every_part_of_the_key_tells_files_apart(tmp_path: Path, other: SliceKey) -> None:
    disk = written(tmp_path, KEY)
    assert not disk.contains(other)
    assert disk.get(other) is None
    disk.put(other, embedding(99))
    disk.flush()
    assert equal(disk.get(KEY), embedding(7))
    assert equal(disk.get(other), embedding(99))


def test_it_is_found_while_it_waits_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    pack = disk_module.pack
    monkeypatch.setattr(disk_module, "pack", lambda *given: go_on.wait(10) and pack(*given))
    disk = DiskCache(tmp_path, LARGE)
    started = time.perf_counter()
    disk.put(KEY, embedding())
    assert time.perf_counter() - started < 1
    assert disk.contains(KEY)
    assert equal(disk.get(KEY), embedding())
    assert disk.stats().pending == 1
    assert files(tmp_path) == []
    go_on.set()
    disk.flush()
    assert disk.stats().pending == 0
    assert len(files(tmp_path)) == 1


def test_a_slice_that_waits_already_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    pack = disk_module.pack
    monkeypatch.setattr(disk_module, "pack", lambda *given: go_on.wait(10) and pack(*given))
    monkeypatch.setattr(disk_module, "MAX_PENDING_BYTES", 2 * embedding().nbytes)
    disk = DiskCache(tmp_path, LARGE)
    for _ in range(2):
        disk.put(KEY, embedding())
    go_on.set()
    disk.flush()
    assert (disk.stats().written, disk.stats().pending) == (1, 0)
    go_on.clear()
    for index in range(2):
        disk.put(key(index), embedding(index))
    go_on.set()
    disk.flush()
    assert (disk.stats().written, disk.stats().dropped) == (3, 0)


def test_more_than_may_wait_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    pack = disk_module.pack
    monkeypatch.setattr(disk_module, "pack", lambda *given: go_on.wait(10) and pack(*given))
    monkeypatch.setattr(disk_module, "MAX_PENDING_BYTES", 3 * embedding().nbytes)
    disk = DiskCache(tmp_path, LARGE)
    for index in range(5):
        disk.put(key(index), embedding(index))
    go_on.set()
    disk.flush()
    assert (disk.stats().written, disk.stats().dropped) == (3, 2)
    assert [disk.contains(key(index)) for index in range(5)] == [True, True, True, False, False]
    disk.put(key(4), embedding(4))
    disk.flush()
    assert disk.contains(key(4))


def test_nothing_is_made_before_the_first_slice(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "embeddings", LARGE)
    assert disk.get(KEY) is None
    assert not disk.contains(KEY)
    assert disk.stats().used_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_restart_counts_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, key(0), key(1))
    disk = DiskCache(tmp_path, LARGE)
    total = sum(path.stat().st_size for path in files(tmp_path))
    assert disk.stats().used_bytes == total
    assert equal(disk.get(key(1)), embedding(1))
    disk.put(key(2), embedding(2))
    disk.flush()
    assert disk.stats().used_bytes == sum(path.stat().st_size for path in files(tmp_path)) > total


def test_a_process_that_ends_writes_what_is_waiting(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path; from lib.embeddings import DiskCache, SliceKey\n"
        "disk = DiskCache(Path(sys.argv[1]), 1 << 24)\n"
        "for index in range(20): disk.put(SliceKey('v', 'm', 2, index), torch.full((256, 16, 16), index).half())\n"
    )
    app = Path(lib.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(app)},
        timeout=120,
    )
    disk = DiskCache(tmp_path, LARGE)
    assert equal(disk.get(SliceKey("v", "m", 2, 19)), torch.full((256, 16, 16), 19).half())
    assert len(files(tmp_path)) == 20


def test_the_bound_holds_and_the_oldest_go(tmp_path: Path) -> None:
    size = file_size(tmp_path / "size")
    folder = tmp_path / "embeddings"
    written(folder, *(key(index) for index in range(4)))
    for seconds, index in enumerate((1, 3, 0, 2)):  # the first was used last
        age(DiskCache(folder, 1)._path(key(index)), 100.0 * (seconds + 1))
    disk = written(folder, key(10), key(11), max_bytes=4 * size + size // 2)
    assert sum(path.stat().st_size for path in files(folder)) <= 4 * size + size // 2
    assert [index for index in (0, 1, 2, 3, 10, 11) if disk.contains(key(index))] == [1, 3, 10, 11]
    assert disk.stats().evictions == 2


def test_reading_makes_a_file_younger(tmp_path: Path) -> None:
    size = file_size(tmp_path / "size")
    folder = tmp_path / "embeddings"
    disk = written(folder, key(0), key(1), key(2), max_bytes=3 * size + size // 2)
    for index in range(3):
        age(disk._path(key(index)), 1000.0 - index)
    assert disk.get(key(0)) is not None
    assert disk.contains(key(1))  # a look does not
    disk.put(key(3), embedding(3))
    disk.flush()
    assert [disk.contains(key(index)) for index in range(4)] == [True, False, True, True]


def test_a_file_just_used_is_not_marked_again(tmp_path: Path) -> None:
    disk = written(tmp_path, KEY)
    path = disk._path(KEY)
    age(path, disk_module.TOUCH_SECONDS / 2)
    before = path.stat().st_mtime_ns
    disk.get(KEY)
    assert path.stat().st_mtime_ns == before


def test_many_slices_stay_within_the_bound_all_the_time(tmp_path: Path) -> None:
    size = file_size(tmp_path / "size")
    folder = tmp_path / "embeddings"
    bound = 40 * size
    disk = DiskCache(folder, bound)
    largest = 0
    for index in range(200):
        disk.put(key(index), embedding(index))
        if index % 7 == 0:
            disk.flush()
            largest = max(largest, sum(path.stat().st_size for path in files(folder)))
    disk.flush()
    assert bound * 0.8 < largest <= bound
    assert disk.stats().used_bytes == sum(path.stat().st_size for path in files(folder)) <= bound
    assert disk.contains(key(199))


def test_what_exceeds_the_bound_alone_is_not_kept_and_removes_nothing(tmp_path: Path) -> None:
    disk = written(tmp_path, KEY, max_bytes=2000)
    disk.put(key(8), embedding(shape=(64, 4, 4)))
    disk.flush()
    assert disk.contains(KEY)
    assert not disk.contains(key(8))


def test_what_exceeds_the_bound_by_its_header_is_not_kept_either(tmp_path: Path) -> None:
    disk = written(tmp_path, KEY, max_bytes=embedding().nbytes)
    assert files(tmp_path) == []
    assert disk.stats().dropped == 1


def test_two_caches_share_a_folder(tmp_path: Path) -> None:
    first, second = DiskCache(tmp_path, LARGE), DiskCache(tmp_path, LARGE)
    first.put(KEY, embedding(1))
    first.flush()
    assert second.contains(KEY)
    assert equal(second.get(KEY), embedding(1))
    second._path(KEY).unlink()
    assert first.get(KEY) is None
    assert not first.contains(KEY)
    assert first.stats().damaged == second.stats().damaged == 0


def test_two_caches_keep_one_bound_together_though_neither_reaches_it_alone(tmp_path: Path) -> None:
    size = file_size(tmp_path / "size")
    folder = tmp_path / "embeddings"
    bound = 32 * size
    caches = [DiskCache(folder, bound), DiskCache(folder, bound)]
    for index in range(60):
        caches[index % 2].put(key(index), embedding(index))
        caches[index % 2].flush()
        used = sum(path.stat().st_size for path in files(folder))
        assert used <= bound + bound // 32 + size
    assert sum(cache.contains(key(59)) for cache in caches) == 2


def test_threads_and_two_caches_get_whole_files_only(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, LARGE), DiskCache(tmp_path, LARGE)]
    expected = {index: embedding(index, (256, 4, 4)) for index in range(5)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index in rng.integers(0, 5, 150).tolist():
            cache = caches[seed % 2]
            if rng.random() < 0.3:
                cache.put(key(index), expected[index])
            elif (found := cache.get(key(index))) is not None and not equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cache in caches:
        cache.flush()
    assert wrong == []
    assert [cache.stats().damaged for cache in caches] == [0, 0]
    assert len(files(tmp_path)) == 5


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def a_bit_flipped_in_the_data(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-37] ^= 1
    path.write_bytes(content)


def a_bit_flipped_in_the_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"vvvv")] ^= 1
    path.write_bytes(content)


def text_instead(path: Path) -> None:
    path.write_text("no embedding " * 100)


def saved_with(path: Path, tensors: dict[str, torch.Tensor], **changes: str) -> None:
    """The file with other tensors or metadata, but well-formed."""
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    save_file(tensors, path, {**metadata, **changes})


def another_shape(path: Path) -> None:
    saved_with(path, {"embedding": load_file(path)["embedding"].reshape(4, 8, 4)})


def another_type(path: Path) -> None:
    saved_with(path, {"embedding": load_file(path)["embedding"].view(torch.bfloat16)})


def another_tensor(path: Path) -> None:
    saved_with(path, {"something": load_file(path)["embedding"]})


def another_key(path: Path) -> None:
    saved_with(path, load_file(path), index="8")


def no_metadata(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [
        cut_off,
        emptied,
        a_bit_flipped_in_the_data,
        a_bit_flipped_in_the_header,
        text_instead,
        another_shape,
        another_type,
        another_tensor,
        another_key,
        no_metadata,
    ],
)
def test_a_damaged_file_is_a_miss_removed_and_written_anew(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "Jane Doe"
    disk = written(folder, KEY, key(8))
    damage(disk._path(KEY))
    with caplog.at_level(logging.WARNING):
        assert disk.get(KEY) is None
        assert not disk.contains(KEY)
        damage(disk._path(key(8)))
        assert disk.get(key(8)) is None or damage is another_key
    assert disk.stats().damaged == (1 if damage is another_key else 2)
    assert caplog.text.count("damaged") == 1
    assert "Jane" not in caplog.text
    disk.put(KEY, embedding(7))
    disk.flush()
    assert equal(DiskCache(folder, LARGE).get(KEY), embedding(7))


def test_a_file_in_the_folders_place_is_logged_once_and_serving_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "Jane Doe"
    folder.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        disk = written(folder, key(0), key(1))
        assert disk.get(key(0)) is None
        assert not disk.contains(key(0))
    assert caplog.text.count("cannot be kept on disk") == 1
    assert "Jane" not in caplog.text
    assert (disk.stats().dropped, disk.stats().pending, disk.stats().used_bytes) == (2, 0, 0)
    folder.unlink()
    disk.put(key(2), embedding(2))
    disk.flush()
    assert equal(disk.get(key(2)), embedding(2))


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Meanwhile writing fails in the middle of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_part_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), no_more_than(300):
        disk = written(tmp_path / "Jane Doe", key(0), key(1), key(2))
    assert files(tmp_path) == []
    assert caplog.text.count("cannot be kept on disk") == 1
    assert "Jane" not in caplog.text
    assert (disk.stats().written, disk.stats().dropped) == (0, 3)
    disk.put(key(0), embedding(0))
    disk.flush()
    assert disk.contains(key(0))


def test_a_file_that_cannot_be_read_is_a_miss_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = written(tmp_path, KEY)
    path = disk._path(KEY)
    path.unlink()
    path.mkdir()  # opening it fails for root, too
    with caplog.at_level(logging.WARNING):
        assert disk.get(KEY) is None
        assert disk.get(KEY) is None
    assert caplog.text.count("cannot be read") == 1
    assert tmp_path.name not in caplog.text


def test_leftover_parts_go_and_parts_being_written_stay(tmp_path: Path) -> None:
    disk = written(tmp_path, KEY)
    folder = disk._path(KEY).parent
    old, new = folder / ".a.safetensors.0.part", folder / ".b.safetensors.0.part"
    for part in (old, new):
        part.write_bytes(b"half")
    age(old, 2 * disk_module.LEFTOVER_SECONDS)
    written(tmp_path, key(8))
    assert not old.exists()
    assert new.exists()


def test_a_model_has_a_folder_of_its_own_which_goes_when_it_is_empty(tmp_path: Path) -> None:
    disk = written(tmp_path, key(0, "old"), key(1, "old"), key(0, "new"))
    folder = disk._path(key(0, "old")).parent
    assert folder == disk._path(key(1, "old")).parent != disk._path(key(0, "new")).parent
    for path in folder.iterdir():
        path.unlink()
    age(folder, 2 * disk_module.LEFTOVER_SECONDS)
    assert disk.get(key(0, "old")) is None
    assert equal(written(tmp_path, key(2, "new")).get(key(0, "new")), embedding(0))
    assert not folder.exists()


def test_a_whole_model_may_be_removed_while_the_cache_is_in_use(tmp_path: Path) -> None:
    disk = written(tmp_path, key(0), key(1))
    folder = disk._path(key(0)).parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert disk.get(key(0)) is None
    disk.put(key(0), embedding(0))
    disk.flush()
    assert equal(disk.get(key(0)), embedding(0))


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("notes")
    disk = written(tmp_path, *(key(index) for index in range(8)), max_bytes=2000)
    assert (tmp_path / "README").read_text() == "notes"
    assert disk.stats().used_bytes <= 2000
