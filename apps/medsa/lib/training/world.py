"""Several processes that train one network together, as torchrun starts them; one process is a world of one.

All draw different slices and average their gradients, so that they keep the same weights but for rounding, which is
taken back now and then. The first one, rank 0, does all that is done once: choosing cases, judging, publishing,
recording.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from lib.errors import InputError, TrainingError

# How long the others wait while the first one loads and judges. One that dies is noticed at once: its connection ends,
# or torchrun ends them all.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process's place among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over all workers. Raises TrainingError when one of them is gone."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _named_failure():
            distributed.all_reduce(flat)
        _put(flat / self.size, tensors)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by that of rank 0. Raises TrainingError when a worker is gone."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _named_failure():
            distributed.broadcast(flat, src=0)
        _put(flat, tensors)

    def agree(self, wish: bool) -> bool:
        """Whether any worker wishes so; the same answer for all."""
        return self.agree_each([wish])[0]

    def agree_each(self, wishes: Sequence[bool]) -> list[bool]:
        """`agree` about several things at once."""
        if self.size == 1:
            return list(wishes)
        flags = torch.tensor([float(wish) for wish in wishes], device=_device())
        with _named_failure():
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def told(self, value: Any) -> Any:
        """What rank 0 says, on all workers; plain values."""
        if self.size == 1:
            return value
        box = [value]
        with _named_failure():
            distributed.broadcast_object_list(box, src=0, device=_device())
        return box[0]


ALONE = World()


@contextmanager
def world_of_this_process(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes in the environment; a world of one where there is none.

    `device` is "cpu", "cuda", or "auto": a GPU where there is one. Raises TrainingError when the others cannot be
    reached, InputError for more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(_gpu_of(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
    with _named_failure():
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


def _put(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _gpu_of(rank: int, count: int) -> int:
    if rank >= count:
        raise InputError("LOCAL_RANK", rank, f"below the number of GPUs of this machine, {count}")
    return rank


def _device() -> torch.device:
    return torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def _named_failure() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, distributed.DistBackendError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"another worker of this training is gone or cannot be reached: {reason}"
        ) from error
