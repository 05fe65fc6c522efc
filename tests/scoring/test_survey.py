"""One case seen by one model."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib.embeddings import EmbeddingCache
from lib.infers.serving import Served
from lib.model.medsa import MedSA
from lib.predictor import Predictor
from lib.scoring.survey import PICTURE_PIXELS, Surveyor
from lib.scoring.variations import thinned
from lib.settings import IntensitySettings
from lib.volume import Volume


def trained(model: MedSA, scale: float = 0.3) -> MedSA:
    """`model` with adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    state = {
        key: value + scale * torch.randn(value.shape, generator=generator)
        for key, value in model.adapter_state().items()
    }
    model.load_adapter_state(state)
    return model


def served_by(model: MedSA, version: int = 1) -> Served:
    predictor = Predictor(model, "key", IntensitySettings(), "auto", EmbeddingCache(1 << 26))
    return Served("tiny", "a test", version, predictor)


@pytest.fixture
def volume(ellipsoid_case: Any) -> Volume:
    noise = np.random.default_rng(0).normal(0, 5, ellipsoid_case.label.shape)
    return Volume((ellipsoid_case.label * 100 + noise).astype(np.float32), ellipsoid_case.volume.affine)


def test_all_that_is_said_of_a_case(tiny_model: MedSA, volume: Volume) -> None:
    found = Surveyor(served_by(trained(tiny_model), 3), ["object"]).survey(volume)
    score, one = found.score, found.score.labels["object"]
    assert (score.base, score.adapter_version, score.error) == ("tiny", 3, None)
    assert score.embedding.shape == (256,)
    assert np.isfinite(score.embedding).all()
    assert all(0 <= value <= 1 for value in (one.entropy, one.border, one.disagreement))
    assert one.volume_mm3 > 0
    assert score.slice_index is not None
    picture = Image.open(io.BytesIO(found.picture))
    assert (picture.format, max(picture.size)) == ("PNG", PICTURE_PIXELS)


def test_it_is_the_same_every_time_and_for_whoever_asks(tiny_model: MedSA, volume: Volume) -> None:
    model = trained(tiny_model)
    surveyor = Surveyor(served_by(model), ["object"])
    first, again = surveyor.survey(volume), surveyor.survey(volume)
    other = Surveyor(served_by(model), ["object"]).survey(volume)
    assert first.score.labels == again.score.labels == other.score.labels
    assert np.array_equal(first.score.embedding, other.score.embedding)
    assert first.picture == other.picture


def test_a_model_that_was_never_trained_is_not_varied(tiny_model: MedSA, volume: Volume) -> None:
    assert thinned(tiny_model) == ()
    found = Surveyor(served_by(tiny_model, 0), ["object"]).survey(volume)
    assert found.score.labels["object"].disagreement == 0


def test_thinned_networks_differ_from_the_whole_one_and_from_each_other(tiny_model: MedSA) -> None:
    model = trained(tiny_model)
    whole = model.adapter_state()
    states = [network.adapter_state() for network in thinned(model)]
    keys = [key for key in whole if key.endswith("up.weight")]
    assert keys
    for key in keys:
        missing = (states[0][key] == 0).all(dim=0)
        assert torch.equal(states[0][key][:, ~missing], whole[key][:, ~missing] / 0.8)
    assert any(not torch.equal(states[0][key], states[1][key]) for key in keys)
    assert all(torch.equal(states[0][key], whole[key]) for key in whole if key not in keys)
    assert all(torch.equal(state, whole[key]) for key, state in model.adapter_state().items())


def test_a_shaky_model_disagrees_with_itself_more(tiny_model: MedSA, volume: Volume) -> None:
    steady = Surveyor(served_by(trained(tiny_model, 0.01)), ["object"]).survey(volume).score
    shaky = Surveyor(served_by(trained(tiny_model, 1.0)), ["object"]).survey(volume).score
    assert shaky.labels["object"].disagreement > steady.labels["object"].disagreement


@pytest.mark.parametrize(("slices", "looked_at"), [(1, 1), (16, 16), (17, 9), (31, 16), (100, 15)])
def test_of_a_long_series_every_nth_slice_is_looked_at(
    tiny_model: MedSA, slices: int, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(8, 8, slices)).astype(np.float32)
    served, seen = served_by(trained(tiny_model)), []
    decode = served.predictor.decode

    def spied(features: torch.Tensor, *given: Any) -> Any:
        seen.append(len(features))
        return decode(features, *given)

    monkeypatch.setattr(served.predictor, "decode", spied)
    Surveyor(served, ["object"]).survey(Volume(values, np.diag([1, 1, 3, 1.0])))
    whole, rest = divmod(looked_at, 8)
    batches = [8] * whole + [rest] * bool(rest)
    assert seen[: len(batches)] == batches


def test_the_volume_does_not_depend_on_how_many_slices_were_looked_at(
    tiny_model: MedSA, volume: Volume
) -> None:
    model = trained(tiny_model)
    doubled = Volume(np.repeat(volume.array, 2, axis=2), volume.affine @ np.diag([1, 1, 0.5, 1]))
    one = Surveyor(served_by(model), ["object"]).survey(volume).score.labels["object"].volume_mm3
    other = Surveyor(served_by(model), ["object"]).survey(doubled).score.labels["object"].volume_mm3
    assert other == pytest.approx(one, rel=0.25)


def test_a_colour_image(tiny_model: MedSA) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (24, 20, 1, 3)).astype(np.uint8)
    found = Surveyor(served_by(trained(tiny_model)), ["object"]).survey(Volume(colours, np.eye(4)))
    assert Image.open(io.BytesIO(found.picture)).size == (PICTURE_PIXELS, PICTURE_PIXELS * 20 // 24)


def test_it_pauses_where_clicks_can_pass(tiny_model: MedSA, volume: Volume) -> None:
    pauses: list[int] = []
    Surveyor(served_by(trained(tiny_model)), ["object"], lambda: pauses.append(1)).survey(volume)
    assert len(pauses) >= 3
