"""Private names of `safetensors.torch` that clients import all the same.

transformers, accelerate, huggingface_hub and torch's checkpoint reader use some of them. They behave as in
the reference, including faults that a client may rely on: `_find_shared_tensors` compares views of one
storage only. This package itself does not use them; saving uses `frameworks.torch.sharing`, which finds
every overlap.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .format.dtypes import DTYPES
from .frameworks.torch import sharing as torch_sharing
from .frameworks.torch.adapter import ADAPTER, TYPES, host_bytes
from .serialization import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

_TYPES: dict[str, torch.dtype] = dict(TYPES)
_SIZE: dict[torch.dtype, int] = {
    dtype: max(DTYPES[code].bits // 8, 1) for code, dtype in TYPES.items()
}
_is_complete = torch_sharing.is_complete


def _getdtype(dtype_str: str) -> torch.dtype:
    return _TYPES[dtype_str]


def storage_ptr(tensor: torch.Tensor) -> int:
    """Address of the tensor's storage; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def storage_size(tensor: torch.Tensor) -> int:
    """Size of the tensor's storage in bytes."""
    try:
        return tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return tensor.nelement() * _SIZE[tensor.dtype]


def _end_ptr(tensor: torch.Tensor) -> int:
    return torch_sharing.span(tensor)[1]


def _find_shared_tensors(state_dict: Mapping[str, torch.Tensor]) -> list[set[str]]:
    storages: dict[tuple[torch.device, int, int], set[str]] = {}
    for name, tensor in state_dict.items():
        place = (tensor.device, storage_ptr(tensor), storage_size(tensor))
        if tensor.device.type != "meta" and place[1] and place[2]:
            storages.setdefault(place, set()).add(name)
    return _filter_shared_not_shared(list(storages.values()), state_dict)


def _filter_shared_not_shared(
    tensors: list[set[str]], state_dict: Mapping[str, torch.Tensor]
) -> list[set[str]]:
    groups: list[set[str]] = []
    for names in tensors:
        stop = -1
        for begin, end, name in sorted((*torch_sharing.span(state_dict[n]), n) for n in names):
            if begin < stop:
                groups[-1].add(name)
            else:
                groups.append({name})
            stop = end
    return groups


def _remove_duplicate_names(
    state_dict: Mapping[str, torch.Tensor],
    *,
    preferred_names: Iterable[str] | None = None,
    discard_names: Iterable[str] | None = None,
) -> dict[str, list[str]]:
    preferred, discarded = set(preferred_names or ()), set(discard_names or ())
    removed: dict[str, list[str]] = defaultdict(list)
    for names in _find_shared_tensors(state_dict):
        kept = torch_sharing.choose_kept(names, state_dict, preferred, discarded)
        for name in sorted(names - {kept}):
            removed[kept].append(name)
    return removed


def _view2torch(safeview: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, torch.Tensor]:
    return {
        name: ADAPTER.decode(memoryview(entry["data"]), entry["dtype"], tuple(entry["shape"]), None)
        for name, entry in safeview
    }


def _to_ndarray(tensor: torch.Tensor) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], torch.Tensor]:
    host = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return np.frombuffer(host_bytes("", host), np.uint8), host


def _flatten_as_ptr(
    tensors: Mapping[str, torch.Tensor], keep_alive_buffer: list[Any]
) -> dict[str, Any]:
    flattened = {}
    for name, encoded in ADAPTER.encode(tensors).items():
        data = np.frombuffer(encoded.view(), np.uint8)
        keep_alive_buffer.append((data, tensors[name]))
        flattened[name] = TensorSpec(
            dtype=encoded.dtype,
            shape=encoded.shape,
            data_ptr=data.ctypes.data,
            data_len=data.nbytes,
        )
    return flattened


def _tobytes(tensor: torch.Tensor, name: str) -> bytes:
    return bytes(ADAPTER.encode({name: tensor})[name].view())


def _flatten(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "dtype": str(tensors[name].dtype).split(".")[-1],
            "shape": tensors[name].shape,
            "data": bytes(encoded.view()),
        }
        for name, encoded in ADAPTER.encode(tensors).items()
    }
