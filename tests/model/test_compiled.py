"""torch.compile: the same masks, and no compiler is no reason to fail."""

import logging
import shutil

import pytest
import torch

from lib.model import compiled
from lib.model.compiled import Compiled
from lib.model.medsa import MedSA


@torch.inference_mode()
def test_a_compiler_that_fails_is_named_and_the_answer_comes_all_the_same(
    tiny_model: MedSA, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(run: object) -> object:
        def fail(*arguments: object) -> None:
            raise RuntimeError("no C++ compiler found\nand a long trace")

        return fail

    planes = 255 * torch.rand(2, 3, 64, 64)
    expected = tiny_model.encode(planes)
    monkeypatch.setattr(compiled.torch, "compile", broken)
    tiny_model.use_compile()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(tiny_model.encode(planes), expected)
        assert torch.equal(tiny_model.encode(planes), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "the network runs without torch.compile: no C++ compiler found"
    ]


def test_an_error_of_the_network_itself_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.torch, "compile", lambda run: lambda *arguments: run(*arguments))

    def wrong(x: int) -> None:
        raise ValueError(f"{x} is wrong")

    run = Compiled(wrong)
    with pytest.raises(ValueError, match="3 is wrong"):
        run(3)
    assert not run.fell_back


@pytest.mark.large
@torch.inference_mode()
def test_compiled_the_network_gives_the_same(tiny_model: MedSA) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler here: there is no g++")
    planes = 255 * torch.rand(2, 3, 64, 64)
    tiny_model.trained = True
    expected = tiny_model.encode(planes)
    tiny_model.use_compile()
    torch.testing.assert_close(tiny_model.encode(planes), expected, rtol=1e-4, atol=1e-5)
    assert not tiny_model._run_block.fell_back  # type: ignore[attr-defined]
    assert tiny_model.sibling()._run_block is tiny_model._run_block
