"""What several processes that torchrun started have to agree on; one process needs none of it.

Every process draws the masks of the whole batch, which costs next to nothing, and reads its own
rows. The gradients are added up, so that all processes hold the same weights after every step.
"""
import contextlib
import os

import torch
import torch.distributed as dist
# Its functions keep the group of processes that is there when they are defined, so they have to be
# defined before there is one: see `leave`.
import torch.distributed.nn  # noqa: F401
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minibert.errors import UserError


def join(device: str) -> tuple[int, int]:
    """Join the processes: this one's number (its rank) and how many there are, 0 and 1 if alone.

    Raises UserError where something else than torchrun has set WORLD_SIZE, as some schedulers do.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    missing = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
    if missing:
        raise UserError(f"WORLD_SIZE is set, but not {', '.join(sorted(missing))}; start several "
                        "processes with torchrun, or one with WORLD_SIZE unset")
    gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device == "cuda" else None
    if gpu:
        torch.cuda.set_device(gpu)
    # gloo exchanges what lies on the CPU, so that processes can agree without waiting for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", device_id=gpu)
    return dist.get_rank(), dist.get_world_size()


def wrap(model: nn.Module) -> nn.Module:
    """The model to call in training, whose backward pass averages gradients over the processes."""
    return DistributedDataParallel(model) if dist.is_initialized() else model


def alone(model: nn.Module) -> contextlib.AbstractContextManager:
    """Keep the gradients to this process, because more micro-batches of the step will come."""
    return model.no_sync() if dist.is_initialized() else contextlib.nullcontext()


def add_up(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums over all processes of scalars, each process having those of its own rows."""
    if not dist.is_initialized():
        return terms
    total = torch.stack([*terms.values()])
    dist.all_reduce(total)
    return dict(zip(terms, total))


def largest(number: int) -> int:
    """The largest of the numbers that the processes give; each waits here for all others.

    Raises UserError where another process has ended.
    """
    if not dist.is_initialized():
        return number
    result = torch.tensor(number)  # on the CPU, so that no GPU is waited for
    try:
        dist.all_reduce(result, dist.ReduceOp.MAX)
    except RuntimeError:
        raise UserError("another process has ended, and its own message says why; then run the "
                        "same command again") from None
    return int(result)


def leave() -> None:
    """Say goodbye to the other processes, if there are any; the model of `wrap` must be forgotten.

    Torch ends the threads of a group of processes when nothing refers to it any more. If the model
    does so longer than torch itself, the process may wait for ever; if something always does, it
    may end in an abort, and torchrun then kills the others, which may not be done.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
