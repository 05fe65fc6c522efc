"""What of benchmarks/network.py can be wrong without anybody seeing it in a table."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.bases import catalog
from lib.model.base import BaseSpec
from lib.settings import load_settings

REPOSITORY = Path(__file__).resolve().parent.parent


def load_network() -> ModuleType:
    """The program as a module: benchmarks is no package."""
    found = importlib.util.spec_from_file_location("benchmarks_network", REPOSITORY / "benchmarks/network.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look it up
    found.loader.exec_module(module)
    return module


network = load_network()


def counted_by_torch(spec: BaseSpec) -> int:
    """Operations that torch counts while segment_anything's encoder runs on one slice."""
    sam, planes = network.random_sam(spec), network.random_planes(1, spec)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.encode_as_released(sam, planes)
    return counter.get_total_flops()


def test_flops_are_those_torch_counts_where_no_window_is_padded(tiny_spec: BaseSpec) -> None:
    assert network.encoder_flops(tiny_spec, 0) == counted_by_torch(tiny_spec)


def test_padding_of_windows_is_not_counted(tiny_spec: BaseSpec) -> None:
    padded = replace(tiny_spec, window_size=3)
    # A grid of 4 in windows of 3: one whole, the others with 3, 3 and 1 tokens.
    scores, relative = 9**2 + 2 * 3**2 + 1, 9 * 6 + 2 * 3 * 4 + 2
    whole = 4 * 4**2 * 2 * padded.encoder_width + 4 * 4 * 4 * padded.encoder_width
    expected = network.encoder_flops(tiny_spec, 0) - 2 * whole
    expected += 2 * (2 * scores + relative) * padded.encoder_width
    assert network.encoder_flops(padded, 0) == expected
    assert network.encoder_flops(padded, 0) < counted_by_torch(padded)


def test_adapters_are_counted(tiny_spec: BaseSpec) -> None:
    more = network.encoder_flops(tiny_spec, 4) - network.encoder_flops(tiny_spec, 0)
    layers = 4  # Down and Up of two adapters
    assert more == tiny_spec.encoder_depth * layers * 2 * tiny_spec.grid**2 * tiny_spec.encoder_width * 4


@pytest.mark.parametrize("window_size", [2, 3])
def test_plain_network_in_3d_gives_what_the_model_gives(tiny_spec: BaseSpec, window_size: int) -> None:
    spec = replace(tiny_spec, window_size=window_size)
    dims = replace(network.VIT_B_DIMS, encoder_width=4, depth=3)
    model = network.pretend_trained(network.adapted(network.random_sam(spec), spec, dims))
    planes = network.random_planes(6, spec)
    with torch.inference_mode():
        expected = model.encode(planes, [3, 3])
        assert network.difference(network.encode_plainly(model, planes, 3), expected) < network.SAME_RESULT
        # The depth branch is in it.
        assert network.difference(model.encode(planes), expected) > 100 * network.SAME_RESULT


def test_vit_b_is_the_one_of_the_settings(tmp_path: Path) -> None:
    settings = load_settings(REPOSITORY / "apps/medsa/configs", {})
    entry = catalog(settings, tmp_path).entries["vit_b"]
    assert (entry.spec, entry.dims) == (network.VIT_B, network.VIT_B_DIMS)


@pytest.mark.parametrize(
    ("value", "bar", "holds"),
    [
        (2.5, ">= 2.5", True),
        (2.4, ">= 2.5", False),
        (0.6, "<= 0.6", True),
        (8.0, "< 8", False),
        (9.0, "-", True),
    ],
)
def test_a_figure_is_judged_by_its_bar(value: float, bar: str, holds: bool) -> None:
    assert network.judged("figure", value, "times", bar).holds is holds


def test_what_cannot_be_measured_is_an_entry_with_a_reason() -> None:
    entry = network.entry_of(network.unmeasured("figure", "ms", "< 4", "no GPU on this machine"))
    assert (entry["value"], entry["holds"], entry["note"]) == (None, None, "no GPU on this machine")
    assert "note" not in network.entry_of(network.judged("figure", 1.0, "ms", "< 4"))


def test_share_is_of_the_best_product_of_the_round() -> None:
    rounds = {network.product_name("float32", shape): 2.0 for shape in network.PRODUCTS}
    rounds[network.product_name("float32", network.PRODUCTS[-1])] = 1.0
    rounds["float32"] = 4.0
    assert network.share_of_rate(rounds, "float32", 2 * 4096**3) == pytest.approx(0.25)
