"""Weights whose codes run through the tensor in C order, across the ends of rows."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from .weight import Range, Weight

__all__ = ["Flat"]

Array = np.ndarray[Any, Any]


class Flat(Weight):
    """A weight that is computed by places in C order."""

    @abstractmethod
    def run(self, begin: int, end: int) -> Array:
        """The values of the elements from `begin` to `end`, as float32."""

    def values(self, batch: int, rows: Range, columns: Range) -> Array:
        first = batch * self.rows + rows.begin
        if len(columns) == self.columns:
            begin = first * self.columns
            end = begin + len(rows) * self.columns
            return self.run(begin, end).reshape(len(rows), self.columns)
        out = np.empty((len(rows), len(columns)), "<f4")
        for row in range(len(rows)):
            begin = (first + row) * self.columns + columns.begin
            out[row] = self.run(begin, begin + len(columns))
        return out
