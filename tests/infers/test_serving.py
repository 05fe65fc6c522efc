"""The model that answers follows the published version."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib.embeddings import EmbeddingCache
from lib.errors import CheckpointError
from lib.infers.serving import OpenBase, ServingModel, View
from lib.model.adapter_io import AdapterConfig, save_adapter
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.training.releases import Releases

SHA = "0" * 64
LABELS = {"object": 1}


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "state")


@pytest.fixture
def serving(tiny_model: MedSA, releases: Releases) -> ServingModel:
    view = View(IntensitySettings(), "auto", "cpu")
    return ServingModel(
        lambda: OpenBase("tiny", "a test", SHA, tiny_model), releases, LABELS, view, EmbeddingCache(1 << 20)
    )


@pytest.fixture
def publish(tiny_model: MedSA, releases: Releases) -> Callable[..., Path]:
    """publish(value, labels) -> the folder of a new version whose tensors all hold `value`."""

    def make(value: float, labels: dict[str, int] = LABELS) -> Path:
        other = MedSA(tiny_model.sam, tiny_model.spec, tiny_model.dims, tiny_model.labels)
        with torch.no_grad():
            for parameter in other.adapters.parameters():
                parameter.fill_(value)
        config = AdapterConfig("tiny", SHA, vars(tiny_model.dims), labels, {}, "test")
        return releases.publish(lambda folder: save_adapter(folder, other, config, "card"), {}).folder

    return make


def first_value(serving: ServingModel) -> float:
    return next(serving.current().predictor.model.adapters.parameters()).flatten()[0].item()


def test_version_0_is_the_base(serving: ServingModel) -> None:
    served = serving.current()
    assert (served.base, served.adapter_version, serving.problem) == ("tiny", 0, None)
    assert serving.current() is served


def test_nothing_is_loaded_before_it_is_needed(serving: ServingModel) -> None:
    assert serving.served is None
    serving.current()
    assert serving.served is not None


def test_takes_up_a_new_version_and_a_rollback(
    serving: ServingModel, publish: Any, releases: Releases
) -> None:
    before = serving.current()
    publish(0.25)
    assert (serving.current().adapter_version, first_value(serving)) == (1, 0.25)
    publish(0.5)
    assert (serving.current().adapter_version, first_value(serving)) == (2, 0.5)
    releases.rollback(1, "now")
    assert (serving.current().adapter_version, first_value(serving)) == (1, 0.25)
    releases.rollback(0, "now")
    assert serving.current().adapter_version == 0
    assert before.predictor.model is serving.current().predictor.model


def test_a_request_keeps_the_version_it_began_with(serving: ServingModel, publish: Any) -> None:
    publish(0.25)
    held = serving.current()
    publish(0.5)
    assert serving.current().adapter_version == 2
    assert next(held.predictor.model.adapters.parameters()).flatten()[0].item() == 0.25


def test_versions_share_the_frozen_base(serving: ServingModel, publish: Any, tiny_model: MedSA) -> None:
    publish(0.25)
    assert serving.current().predictor.model.sam is tiny_model.sam


def test_a_damaged_version_is_logged_once_and_the_last_good_one_answers(
    serving: ServingModel, publish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    publish(0.25)
    serving.current()
    (publish(0.5) / "adapter_model.safetensors").write_bytes(b"cut off")
    with caplog.at_level(logging.ERROR):
        assert [serving.current().adapter_version for _ in range(3)] == [1, 1, 1]
    assert caplog.text.count("cannot serve") == 1
    assert "v0002" in str(serving.problem)
    publish(0.75)
    assert (serving.current().adapter_version, serving.problem) == (3, None)


def test_a_version_for_other_labels_does_not_serve(serving: ServingModel, publish: Any) -> None:
    publish(0.25, {"object": 2})
    assert serving.current().adapter_version == 0
    assert "labels" in str(serving.problem)


def test_an_unreadable_pointer_changes_nothing(serving: ServingModel, publish: Any, tmp_path: Path) -> None:
    publish(0.25)
    serving.current()
    (tmp_path / "state" / "champion.json").write_text("{")
    assert serving.current().adapter_version == 1
    assert serving.problem


def test_a_base_that_cannot_be_loaded_is_tried_again(tiny_model: MedSA, releases: Releases) -> None:
    tries: list[int] = []

    def open_base() -> OpenBase:
        tries.append(1)
        if len(tries) == 1:
            raise CheckpointError("not yet")
        return OpenBase("tiny", "a test", SHA, tiny_model)

    view = View(IntensitySettings(), "auto", "cpu")
    serving = ServingModel(open_base, releases, LABELS, view, EmbeddingCache(1 << 20))
    with pytest.raises(CheckpointError):
        serving.current()
    assert serving.current().adapter_version == 0


def embedding_key(serving: ServingModel) -> str:
    return serving.current().predictor._encoder.model_key


def test_embeddings_are_named_by_the_adapters_content_and_not_by_its_number(
    serving: ServingModel, publish: Any, releases: Releases, tiny_model: MedSA, tmp_path: Path
) -> None:
    base = embedding_key(serving)
    publish(0.25)
    first = embedding_key(serving)
    publish(0.5)
    second = embedding_key(serving)
    assert len({base, first, second}) == 3
    assert all(SHA in key for key in (base, first, second))
    publish(0.25)
    assert serving.current().adapter_version == 3
    assert embedding_key(serving) == first
    releases.rollback(0, "now")
    assert embedding_key(serving) == base


def test_embeddings_of_another_base_have_another_name(tiny_model: MedSA, releases: Releases) -> None:
    names = set()
    for sha256 in (SHA, "1" * 64):
        base = OpenBase("tiny", "a test", sha256, tiny_model)
        view = View(IntensitySettings(), "auto", "cpu")
        names.add(
            embedding_key(ServingModel(lambda base=base: base, releases, LABELS, view, EmbeddingCache(0)))
        )
    assert len(names) == 2
