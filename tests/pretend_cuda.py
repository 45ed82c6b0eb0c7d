"""Tensors that say they are on a GPU, keep its rules and compute on the processor: for tests without one.

`PretendCuda` is a mode. In it `device=DEVICE` gives a `PretendTensor`, which holds a tensor of the processor. Every
operation is checked as CUDA checks it, done on what is held, and counted: kernels by operation, and what makes the host
wait for the device by line of the library. What CUDA's own kernels differ in (dtypes that one lacks, but for those of
indexing, rounding, strides of what it returns) is out of its sight.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import homoalign

DEVICE = torch.device("cuda", 99)
"""No machine has so many: what the library keeps for a device is not mixed up with what it keeps for a real one."""

LIBRARY = str(Path(homoalign.__file__).parent)

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
NOT_INDEXED = {torch.uint16, torch.uint32, torch.uint64}
ONE_DEVICE = {aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_, aten.lerp, aten.lerp_, aten.clamp, aten.clamp_}
"""Of the operations point by point those that do not even take a scalar tensor of another device."""
SCALARS = {aten.where, aten.index_fill, aten.index_fill_, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_}
"""Others that do."""
WAITING = {
    *(aten._linalg_check_errors, aten._linalg_eigh, aten._linalg_svd, aten._local_scalar_dense, aten._unique2),
    *(aten.bincount, aten.masked_select, aten.nonzero, aten.unique_consecutive, aten.unique_dim),
    aten.repeat_interleave.Tensor,
}
"""What ends only when the device has told the host something."""


class PretendTensor(Tensor):
    """Holds a tensor of the processor, `held`. To torch's own code it is on "meta", which every build knows."""

    held: Tensor
    device = DEVICE
    is_cuda, is_meta = True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="meta", **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a pretended device, outside of PretendCuda")

    def numpy(self) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    # Torch refuses the first to every tensor that is made in Python, and leaves empty what the others put on "meta".
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(i, device=DEVICE) if isinstance(i, list) else i for i in parts))

    def new_tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=DEVICE)


class PretendCuda(TorchDispatchMode):
    """In this mode the processor pretends to be a GPU.

    Attributes:
        kernels: how many were started, by operation.
        waits: how often the host waited for the device, by line of the library and what for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> PretendCuda:
        self._before = torch.cuda._lazy_init, torch._C._only_lift_cpu_tensors(), torch.inference_mode
        torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]  # tensors made in Python know no other
        if not torch.cuda.is_available():
            torch.cuda._lazy_init = lambda: None
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=DEVICE)` comes through here, too
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.cuda._lazy_init, lift, torch.inference_mode = self._before  # type: ignore[misc]
        torch._C._set_only_lift_cpu_tensors(lift)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: list[Tensor] = []

        def hold(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                given.append(leaf)
            return leaf.held if isinstance(leaf, PretendTensor) else leaf

        held = _map(hold, args)
        options = {name: _map(hold, value) for name, value in (kwargs or {}).items()}
        ours = {id(tensor.held): tensor for tensor in given if isinstance(tensor, PretendTensor)}
        packet, asked = func.overloadpacket, options.get("device")
        is_ours = bool(ours) if asked is None else torch.device(asked).type != "cpu"
        if packet is aten.copy_:
            is_ours = isinstance(given[0], PretendTensor)
        if packet in COPIES:
            is_far = is_ours != isinstance(given[-1], PretendTensor)
            if is_far and not (options.get("non_blocking") or args[2:3] == (True,)):
                self._wait("copy to the device" if is_ours else "copy to the host")
        elif ours:
            self._check(func, args, given)
        if is_ours and asked is not None:
            options["device"] = "cpu"
        is_compared = packet is aten.equal and args[0].shape == args[1].shape
        if ours and (packet in WAITING or func in WAITING or is_compared):
            self._wait(packet.__name__)
        if is_ours and not func.is_view and "empty" not in packet.__name__:
            self.kernels[packet.__name__] += 1
        if ours and torch.Tag.inplace_view in func.tags:  # such as squeeze_: the shape that is shown changes too
            with torch._C._DisableTorchDispatch():
                func(*args, **options)

        def wrap(leaf: Any) -> Any:
            if id(leaf) in ours:  # what an operation in place returns
                return ours[id(leaf)]
            return PretendTensor(leaf) if is_ours and isinstance(leaf, Tensor) else leaf

        # A conjugate that is still to be taken would be forgotten: it is not seen from without.
        return _map(wrap, (aten._conj_physical if packet is aten._conj else func)(*held, **options))

    def _check(self, func: Any, args: Any, given: Sequence[Tensor]) -> None:
        """Raise where CUDA would."""
        packet = func.overloadpacket
        if packet in INDEXING:
            is_ours, indices = isinstance(args[0], PretendTensor), [index for index in args[1] if index is not None]
            if is_ours and args[0].dtype in NOT_INDEXED:
                raise NotImplementedError(f'"index_cuda" not implemented for {args[0].dtype}')
            if not is_ours and any(isinstance(index, PretendTensor) for index in indices):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            for index in indices:
                if not isinstance(index, PretendTensor):
                    self._wait("copy of an index to the device")
                if index.dtype in (torch.bool, torch.uint8):
                    self._wait("count of a mask")
            given = [tensor for tensor in given if not any(tensor is index for index in indices)]
        strangers = [tensor for tensor in given if not isinstance(tensor, PretendTensor)]
        if not strangers:
            return
        takes = len(strangers) if packet in SCALARS | INDEXING else int(torch.Tag.pointwise in func.tags)
        if len(strangers) > takes or packet in ONE_DEVICE or any(tensor.ndim > 0 for tensor in strangers):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {DEVICE} and cpu")

    def _wait(self, what_for: str) -> None:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
            frame = frame.f_back
        where = "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        self.waits[f"{where} {what_for}"] += 1


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Return `value` with what it is made of changed; faster than torch's own pytree."""
    return type(value)(_map(change, part) for part in value) if isinstance(value, (list, tuple)) else change(value)
