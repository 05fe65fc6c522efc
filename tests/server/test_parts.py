"""The app's parts, built from settings."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lib.errors import SettingsError
from lib.model.adapter_io import AdapterConfig
from lib.model.catalog import BaseCatalog, BaseRequest
from lib.server import parts as parts_module
from lib.server.parts import build_parts, describe_base, note_base
from lib.trainers.children import SERVER_BASE

APP = Path(parts_module.__file__).resolve().parents[2]


def test_nothing_is_loaded_or_written(tmp_path: Path) -> None:
    parts = build_parts(APP, {"task": "object", "state": str(tmp_path / "state")})
    described = describe_base(parts.serving)
    assert described.pop("embedding_cache")["slices"] == 0
    assert described == {
        "base": None,
        "base_reason": None,
        "version": None,
        "problem": None,
    }
    assert parts.serving_version() is None
    assert list(tmp_path.iterdir()) == []


def test_the_state_lies_in_the_app_unless_told_otherwise(tmp_path: Path) -> None:
    assert build_parts(APP, {"task": "hippocampus"}).state == APP / "model" / "hippocampus"
    assert build_parts(APP, {"state": str(tmp_path / "s")}).scores.path == tmp_path / "s" / "scores"


def described_cache(tmp_path: Path, memory_mb: int, disk_mb: int) -> Any:
    conf = {
        "state": str(tmp_path / "state"),
        "embedding_cache_mb": str(memory_mb),
        "embedding_disk_mb": str(disk_mb),
    }
    return describe_base(build_parts(APP, conf).serving)["embedding_cache"]


def test_the_embedding_cache_has_the_sizes_that_are_set_and_lies_in_the_state(tmp_path: Path) -> None:
    found = described_cache(tmp_path, 5, 7)
    assert (found["max_bytes"], found["disk"]["max_bytes"]) == (5 << 20, 7 << 20)
    assert json.loads(json.dumps(found)) == found
    assert described_cache(tmp_path, 5, 0)["disk"] is None
    assert described_cache(tmp_path, 0, 7)["max_bytes"] == 0
    assert described_cache(tmp_path, 0, 0) == "off"
    parts = build_parts(APP, {"state": str(tmp_path / "state")})
    assert parts.serving.cache.disk is not None
    assert parts.serving.cache.disk.folder == tmp_path / "state" / "embeddings"


def release(state: Path, version: int, base: str | None) -> None:
    folder = state / "releases" / f"v{version:04d}"
    folder.mkdir(parents=True)
    config = AdapterConfig(str(base), "0", {}, {}, {}, "")
    (folder / "adapter_config.json").write_text("{" if base is None else json.dumps(asdict(config)))


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], BaseRequest]:
    """What is asked of the catalogue when the model is built with this `base`."""

    def choose(base: str) -> BaseRequest:
        asked: list[BaseRequest] = []
        monkeypatch.setattr(BaseCatalog, "choose", lambda self, request: asked.append(request))
        monkeypatch.setattr(parts_module, "build_model", lambda choice, labels, precision: None)
        build_parts(APP, {"state": str(tmp_path / "s"), "base": base}).build_model()
        return asked[0]

    monkeypatch.delenv(SERVER_BASE, raising=False)
    return choose


@pytest.mark.parametrize(
    ("pointer", "base"),
    [
        ('{"version": 1}', "vit_t"),
        ('{"version": 0}', "vit_b"),  # rolled back to the base alone
        ('{"version": 3}', "vit_b"),  # damaged
        ('{"version": 9}', "vit_b"),  # gone
        ("{", "vit_b"),
        (None, "vit_b"),
    ],
)
def test_auto_stays_with_the_base_of_what_was_published(
    chosen: Callable[[str], BaseRequest], tmp_path: Path, pointer: str | None, base: str
) -> None:
    for version, name in enumerate(("vit_t", "vit_b", None, "unknown"), start=1):
        release(tmp_path / "s", version, name)
    if pointer is not None:
        (tmp_path / "s" / "champion.json").write_text(pointer)
    assert chosen("auto").published_on == base


def test_nothing_was_published(chosen: Callable[[str], BaseRequest]) -> None:
    assert chosen("auto") == BaseRequest(has_gpu=chosen("auto").has_gpu)


def test_commands_use_the_base_that_the_server_chose_last(
    chosen: Callable[[str], BaseRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDSA_SERVER_PID", raising=False)
    note_base(tmp_path / "s", "vit_b")
    assert chosen("auto").served_on == "vit_b"
    monkeypatch.setenv("MEDSA_SERVER_PID", str(os.getpid()))
    assert chosen("auto").served_on is None, "the server itself follows the machine"
    monkeypatch.delenv("MEDSA_SERVER_PID")
    note_base(tmp_path / "s", "another")
    assert chosen("auto").served_on is None


def test_children_use_the_base_that_the_server_chose(
    chosen: Callable[[str], BaseRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER_BASE, "vit_t")
    assert chosen("auto").base == "vit_t"
    monkeypatch.setenv(SERVER_BASE, "no such base")
    assert chosen("auto").base == "auto"


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="train_afer"):
        build_parts(APP, {"train_afer": "3"})
