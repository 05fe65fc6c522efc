"""A training by two real processes over gloo, as `torchrun` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import pytest
from filelock import FileLock

from lib.training.releases import Releases

APP = Path(__file__).resolve().parents[2] / "apps" / "medsa"
WORKER = """
import itertools, json, sys, time
import torch
from pathlib import Path
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings, ServingSettings, Settings, TaskSettings, TrainingSettings
from lib.training.cases import CaseFile
from lib.training.request import RunRequest
from lib.training.run import run_training
from lib.training.world import world_of_this_process

import hashlib
import lib.training.teaching as teaching
train, weights = teaching.train, []

def noted(model, *given, **named):
    result = train(model, *given, **named)
    digest = hashlib.sha256()
    for key, value in sorted(model.adapter_state().items()):
        digest.update(value.numpy().tobytes())
    weights.append(digest.hexdigest())
    return result

teaching.train = noted
folder, seconds, slices = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
# A negative time is a number of steps, whatever they take.
clock = time.monotonic if seconds > 0 else itertools.count(0.0, 1.0).__next__
torch.set_num_threads(1)
files = [CaseFile(name, folder / f"{name}.nii.gz", folder / f"{name}.label.nii.gz") for name in sys.argv[4:]]
settings = Settings(
    task=TaskSettings(name="test", description="", labels={"object": 1}, intensity=IntensitySettings()),
    training=TrainingSettings(
        train_minutes=abs(seconds) / 60,
        batch_slices=slices,
        prompts_per_slice=4,
        learning_rate=1e-2,
        checkpoint_seconds=0.5,
    ),
    serving=ServingSettings(),
    bases={},
)

def build():
    spec = BaseSpec("tiny", 64, 16, 32, 2, 2, (1,), 2)
    dims = AdapterDims(encoder_width=4, decoder_width=8, hyper_width=8, prompt_rank=4, hyper_layers=2)
    torch.manual_seed(0)
    return MedSA(build_sam(spec), spec, dims, ("object",)).eval(), "0" * 64

with world_of_this_process() as world:
    record = run_training(
        folder / "state", files, settings, build, request=RunRequest("full"), world=world, clock=clock
    )
    Path(folder / f"record{world.rank}.json").write_text(json.dumps(record.to_json() | {"weights": weights}))
"""


@pytest.fixture
def work(tmp_path, cases, unseen, write_case):
    """A folder with eight cases, some of which validate, and the worker's program."""
    (tmp_path / "worker.py").write_text(WORKER)
    names = [write_case(case).case_id for case in [*cases, *unseen]]
    return tmp_path, names


def start(work, seconds, workers):
    folder, names = work
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    environment = {**os.environ, "PYTHONPATH": str(APP), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, str(folder / "worker.py"), str(folder), str(seconds), str(4 // workers), *names],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def record_of(folder, rank):
    return json.loads((folder / f"record{rank}.json").read_text())


def after_training(record):
    return fmean(value for found in record["scores"]["candidate"] for value in found["clicks"])


def test_two_workers_get_what_one_gets_within_noise(work):
    folder, _ = work
    dice = {}
    for workers in (1, 2):
        process = start(work, -80, workers)
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        records = [record_of(folder, rank) for rank in range(workers)]
        assert records[0]["decision"] in ("published", "refused")
        assert records[0]["steps"] == 80
        if workers == 2:
            assert records[1]["decision"] == "followed"
            assert records[1]["steps"] == records[0]["steps"]
            assert records[1]["weights"] == records[0]["weights"][:1], "one network, from the slices of both"
        dice[workers] = after_training(records[0])
        before = fmean(value for found in records[0]["scores"]["champion"] for value in found["clicks"])
        assert dice[workers] > before + 0.1
        if Releases(folder / "state").champion_version():
            Releases(folder / "state").rollback(0, "now")
    assert abs(dice[1] - dice[2]) < 0.1
    assert len(Releases(folder / "state").records()) >= 2


def test_a_killed_worker_ends_the_training_cleanly_and_the_next_one_goes_on(work):
    folder, _ = work
    process = start(work, 60, 2)
    checkpoint = folder / "state" / "checkpoints" / "full-champion.pt"
    progress = folder / "state" / "progress.json"
    wait_for(lambda: checkpoint.exists() and "step" in progress.read_text(), process)
    os.kill(worker_of(process.pid, rank=1), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0, said
    state = Releases(folder / "state")
    assert state.champion_version() == 0
    assert not list((folder / "state" / "releases").glob(".tmp-*"))
    with FileLock(folder / "state" / "training.lock").acquire(timeout=5):
        pass
    assert checkpoint.exists()
    assert not list(checkpoint.parent.glob(".*.part"))
    again = start(work, 5, 2)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert record_of(folder, 0)["resumed"] > 0


UNEVEN = """
import sys
import nibabel, numpy as np, torch
from lib.model.adapters import AdapterDims
from lib.model.base import BaseSpec, build_sam
from lib.model.medsa import MedSA
from lib.settings import IntensitySettings
from lib.training.cases import Case
from lib.training.learner import Diet, Learner, Stage
from lib.training.slabs import prepare_case
from lib.training.viewpoint import Viewpoint
from lib.training.world import world_of_this_process
from lib.volume import Volume

torch.set_num_threads(1)
with world_of_this_process() as world:
    rng = np.random.default_rng(world.rank)
    shape = (24, 20, 1 if world.rank == 0 else 6)
    label = np.zeros(shape, np.uint8)
    label[6:16, 5:14] = 1
    image = (60.0 * label + rng.normal(0, 8, shape)).astype(np.float32)
    case = Case("case", Volume(image, np.diag([1.0, 1.0, 2.0, 1.0])), label)
    spec = BaseSpec("tiny", 64, 16, 32, 2, 2, (1,), 2)
    dims = AdapterDims(
        encoder_width=4, decoder_width=8, hyper_width=8, prompt_rank=4, hyper_layers=2, depth=4
    )
    torch.manual_seed(0)
    model = MedSA(build_sam(spec), spec, dims, ("object",))
    learner = Learner(model, Diet(4, 2, (1.0,)), 0, world)
    cut = prepare_case(case, Viewpoint({"object": 1}, IntensitySettings()), 64, 16)
    depth = [value for name, value in model.adapters.named_parameters() if "depth" in name]
    assert depth
    for _ in range(3):
        learner.step(Stage(model, [cut], together=False), 1e-2)
    assert not [value for value in depth if learner.optimizer.has_begun(value)], "begun without a gradient"
    for _ in range(3):
        learner.step(Stage(model, [cut]), 1e-2)
    assert all(learner.optimizer.has_begun(value) for value in depth)
    counted = learner.optimizer.parts["others"].state
    assert {int(counted[value]["step"]) for value in depth if value in counted} == {3}
    moved = sum(float(value.abs().sum()) for value in depth)
    out = [moved, *(float(value.sum()) for value in learner.parameters)]
    open(f"{sys.argv[1]}/weights{world.rank}.txt", "w").write(repr(out))
"""


def test_a_worker_whose_cases_have_no_depth_does_not_stop_the_others(tmp_path):
    """Its step leaves the depth adapters without gradients; those of the other worker count.

    Where neither has any, the optimizer does not begin with them: it would take their first step for a late one.
    """
    (tmp_path / "uneven.py").write_text(UNEVEN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(APP), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, str(tmp_path / "uneven.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"weights{rank}.txt").read_text() for rank in range(2))
    assert first == second


def wait_for(holds, process):
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def worker_of(launcher, rank):
    """The process of that rank below torchrun's."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no worker of rank {rank}")
