"""Copies of a pipeline that was loaded once: a tenth of the time that loading it again takes."""

import copy
import io
import pickle
from typing import Any

import torch


class Mould:
    """Something of tensors, kept as it is now; each `cast()` is a copy that shares nothing with the others."""

    def __init__(self, model: Any) -> None:
        self._tensors: list[torch.Tensor] = []
        file = io.BytesIO()
        _Pickler(file, self._tensors).dump(model)
        self._structure = file.getvalue()
        self._tensors = copy.deepcopy(self._tensors)

    def cast(self) -> Any:
        return _Unpickler(io.BytesIO(self._structure), copy.deepcopy(self._tensors)).load()


class _Pickler(pickle.Pickler):
    """Leaves the tensors out, which pickle takes most of its time for."""

    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors, self._places = tensors, {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        place: int = self._places.setdefault(id(obj), len(self._tensors))
        if place == len(self._tensors):
            self._tensors.append(obj)
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]
