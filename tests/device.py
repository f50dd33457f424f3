"""A device that counts: it computes on the CPU, and notes each time that a GPU would be waited for.

Within `Device("cuda")`, tensors that are made on that device, or moved there, compute as ever but
say that they are on it. So a test can run a whole recipe and see where Python reads a result, which
copies hold it up, which tensors meet that no GPU would let meet, and what is made there. What
torch's own kernels for a GPU do inside is not seen.
"""
import sys
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ATEN = torch.ops.aten
# They return a number, or a tensor whose size depends on numbers that only the device knows.
READING = {ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.equal, ATEN.nonzero, ATEN.bincount,
           ATEN.masked_select, ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_}
# Where torch believes the device's tensors to be: it computes nothing there, and has no GPU.
META = torch.device("meta")


class OnDevice(torch.Tensor):
    """A tensor on the device; `numbers` holds what is in it, on the CPU."""
    place = None  # the torch.device that the tensors name

    @staticmethod
    def __new__(cls, numbers):
        shell = torch.empty_strided(numbers.size(), numbers.stride(), dtype=numbers.dtype,
                                    device=META)
        tensor = torch.Tensor._make_subclass(cls, shell)
        tensor.numbers = numbers
        return tensor

    device = property(lambda self: self.place)

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, **_):
        return f"OnDevice({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor that has outlived its device")


class Device:
    """What happens on it: waits, a Counter of what waits and the line of code; kernels, how many
    operations; made, (shape, dtype) of every tensor."""

    def __init__(self, name):
        self.name = name
        self.forget()

    def forget(self):
        self.waits, self.kernels, self.made = Counter(), 0, set()

    def __enter__(self):
        OnDevice.place = torch.device(self.name)
        self.modes = [Operations(self), Names(self)]
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def wait(self, why):
        frame, where = sys._getframe(), ""
        while frame and not where:
            name = frame.f_code.co_filename.rsplit("/", 1)[-1]
            if "/minibert/" in frame.f_code.co_filename or name in SCRIPTS:
                where = f"{name}:{frame.f_lineno}"
            frame = frame.f_back
        self.waits[why, where] += 1


SCRIPTS = ("train_bert.py", "train_roberta.py", "distill.py")


class Names(TorchFunctionMode):
    """Puts torch's own device in the place of this one, before torch looks for a driver."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.pin_memory:
            args[0].pinned = True
            return args[0]
        swap = lambda value: META if self.is_it(value) else value
        args, kwargs = tree_map(swap, args), {key: swap(one) for key, one in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META:
            del kwargs["device"]  # torch would make an empty tensor of a list
            return func(*args, **kwargs).to(META)
        return func(*args, **kwargs)

    def is_it(self, value):
        if isinstance(value, torch.device):
            return value.type == self.device.name
        return isinstance(value, str) and value == self.device.name


class Operations(TorchDispatchMode):
    """Computes on the CPU what torch believes to be elsewhere, and takes notes."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, kind = dict(kwargs or {}), func.overloadpacket
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        here = [one for one in tensors if isinstance(one, OnDevice)]
        elsewhere = [one for one in tensors if not isinstance(one, OnDevice)]
        comes = kwargs.get("device") == META
        goes = bool(here) and kwargs.get("device") == torch.device("cpu")
        if not here and not comes:
            return func(*args, **kwargs)
        self.device.kernels += 1
        if goes:
            self.device.wait("a copy from the device")
        elif kind in READING:
            self.device.wait("a number is read")
        elif comes and elsewhere:
            if not (kwargs.get("non_blocking") and getattr(elsewhere[0], "pinned", False)):
                self.device.wait("a copy to the device")
        elif kind in INDEXING and any(one is not None and one.dtype == torch.bool
                                      for one in args[1]):
            self.device.wait("as many as are true")
        elif elsewhere and kind in {*INDEXING, ATEN.copy_, ATEN.where}:
            self.device.wait("a copy to the device")
        else:
            assert all(one.dim() == 0 for one in elsewhere), f"{func} of tensors on two devices"
        if comes:
            kwargs["device"] = torch.device("cpu")
        numbers = lambda one: one.numbers if isinstance(one, OnDevice) else one
        result = func(*tree_map(numbers, args), **tree_map(numbers, kwargs))
        if goes:
            return result
        known = {id(one.numbers): one for one in here}  # an operation in place returns its input
        return tree_map(lambda one: known[id(one)] if id(one) in known else self.new(one)
                        if isinstance(one, torch.Tensor) else one, result)

    def new(self, numbers):
        self.device.made.add((tuple(numbers.shape), numbers.dtype))
        return OnDevice(numbers)
