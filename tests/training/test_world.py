"""Two real processes that torchrun starts, over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.errors import InputError
from lib.training.world import ALONE, _gpu_of, world_of_this_process

APP = Path(__file__).resolve().parents[2] / "apps" / "medsa"


def torchrun(script: Path, *arguments: str, workers: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    environment = {**os.environ, "PYTHONPATH": str(APP), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture
def script(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "worker.py"
        path.write_text(
            "import sys\nimport torch\nfrom lib.training.world import world_of_this_process\n"
            f"with world_of_this_process() as world:\n{body}"
        )
        return path

    return write


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with world_of_this_process() as world:
        assert world == ALONE
        tensor = torch.ones(2)
        world.average([tensor])
        world.share([tensor])
        assert tensor.tolist() == [1.0, 1.0]
        assert (world.agree(True), world.agree(False), world.told("x")) == (True, False, "x")


def test_more_processes_than_gpus_are_named():
    assert _gpu_of(1, 2) == 1
    with pytest.raises(
        InputError,
        match="LOCAL_RANK: 2 is not accepted; allowed: below the number of GPUs of this machine, 2",
    ):
        _gpu_of(2, 2)


def test_two_average_agree_and_listen_to_the_first(script, tmp_path):
    body = (
        "    tensors = [torch.full((2,), float(world.rank)), torch.full((1, 3), 2.0 * world.rank)]\n"
        "    world.average(tensors)\n"
        "    own = [torch.full((2,), 5.0 + world.rank), torch.full((1, 1), 7.0 * world.rank)]\n"
        "    world.share(own)\n"
        "    says = [world.agree(world.rank == 1), world.agree(False), world.told({'from': world.rank})]\n"
        "    out = [t.tolist() for t in tensors + own] + says + [world.leads]\n"
        "    open(f'{sys.argv[1]}/{world.rank}.txt', 'w').write(repr(out))\n"
    )
    done = torchrun(script(body), str(tmp_path))
    assert done.returncode == 0, done.stderr
    same = "[[0.5, 0.5], [[1.0, 1.0, 1.0]], [5.0, 5.0], [[0.0]], True, False, {'from': 0}"
    assert (tmp_path / "0.txt").read_text() == f"{same}, True]"
    assert (tmp_path / "1.txt").read_text() == f"{same}, False]"


def test_a_worker_that_is_killed_ends_the_others_with_its_reason(script, tmp_path):
    body = (
        "    import os, signal\n"
        "    from lib.errors import TrainingError\n"
        "    if world.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    try:\n"
        "        world.average([torch.ones(1)])\n"
        "    except TrainingError as error:\n"
        "        open(f'{sys.argv[1]}/said.txt', 'w').write(str(error))\n"
    )
    done = torchrun(script(body), str(tmp_path))
    assert done.returncode != 0
    said = tmp_path / "said.txt"
    # torchrun may end the other worker before it has noticed by itself; then it says nothing, and has not hung.
    assert not said.exists() or "another worker" in said.read_text()
