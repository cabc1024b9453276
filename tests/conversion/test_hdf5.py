"""HDF5 files as h5py writes them: exact values, or a refusal that says why."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import h5py
import ml_dtypes
import numpy as np
import pytest

from safeweights.conversion import open, scan
from safeweights.errors import SafetensorError

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.arange(1, 5)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.getpid, ()


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "i1", ">i2", "<i4", "u8", ">u4", "bool"])
def test_standard_types_are_exact(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = VALUES.astype(kind)
        file["g/chunked"] = VALUES.astype(kind)
        file["soft"] = h5py.SoftLink("/w")
    found = open(tmp_path / "a.h5")
    assert set(found) == {"w", "g.chunked", "soft"}
    expected = VALUES.astype(kind)
    for tensor in found.values():
        assert bytes(tensor.view()) == expected.astype(expected.dtype.newbyteorder("<")).tobytes()
    assert scan(str(tmp_path / "a.h5")).verdict == "clean"


def odd_types() -> dict[str, h5py.h5t.TypeID]:
    narrow = h5py.h5t.STD_I16LE.copy()
    narrow.set_precision(12)
    shifted = h5py.h5t.STD_U16LE.copy()
    shifted.set_precision(12)
    shifted.set_offset(4)
    small = h5py.h5t.IEEE_F16LE.copy()
    small.set_fields(15, 11, 4, 0, 11)
    small.set_ebias(7)
    return {"12 bits": narrow, "12 bits at bit 4": shifted, "a float of 4 and 11 bits": small}


def write(path: Path, kind: h5py.h5t.TypeID, data: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(data.shape)
        dataset = h5py.h5d.create(file.id, b"w", kind, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)


@pytest.mark.parametrize(("title", "kind"), odd_types().items(), ids=odd_types())
def test_other_types_are_refused(tmp_path: Path, title: str, kind: h5py.h5t.TypeID) -> None:
    integer = kind.get_class() == h5py.h5t.INTEGER
    write(tmp_path / "a.h5", kind, VALUES.astype("i2" if integer else "f4"))
    with pytest.raises(SafetensorError, match="bits"):
        open(tmp_path / "a.h5")["w"].view()
    assert scan(str(tmp_path / "a.h5")).verdict == "incomplete"


def test_bfloat16_is_exact(tmp_path: Path) -> None:
    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    write(tmp_path / "a.h5", kind, VALUES.astype("f4"))
    tensor = open(tmp_path / "a.h5")["w"]
    assert tensor.dtype == "BF16"
    assert bytes(tensor.view()) == VALUES.astype(ml_dtypes.bfloat16).tobytes()


def test_values_in_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(VALUES.astype("i4").tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = VALUES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (4,), "i4", external=[(str(tmp_path / "raw.bin"), 0, 16)])
        layout = h5py.VirtualLayout((4,), "i8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
        file.create_virtual_dataset("virtual", layout)
        file["here"] = VALUES
    found = open(tmp_path / "a.h5")
    for name, message in (("raw", "external storage"), ("virtual", "virtual dataset")):
        with pytest.raises(SafetensorError, match=message):
            found[name].view()
    assert bytes(found["here"].view()) == VALUES.tobytes()
    report = scan(str(tmp_path / "a.h5"))
    assert report.verdict == "incomplete"
    assert {"raw", "virtual"} == {part.reason.split("`")[1] for part in report.unread}


@pytest.mark.parametrize("place", ["attribute", "attribute of a group", "objects", "bytes"])
def test_pickles_that_pytables_loads_are_found(tmp_path: Path, place: str) -> None:
    data = pickle.dumps(Evil(), 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = VALUES
        file["w"].attrs["TITLE"] = np.bytes_(b"a title.")
        if place == "attribute":
            file["w"].attrs["x"] = np.bytes_(data)
        elif place == "attribute of a group":
            file.create_group("g").attrs["x"] = np.bytes_(data)
        elif place == "objects":
            dataset = file.create_dataset("o", (1,), h5py.vlen_dtype(np.uint8))
            dataset[0] = np.frombuffer(data, np.uint8)
        else:
            file["o"] = np.void(data)
    # pyfive does not read sequences, so what they hold cannot be judged.
    expected = "incomplete" if place == "objects" else "dangerous"
    assert scan(str(tmp_path / "a.h5")).verdict == expected


@pytest.mark.parametrize("place", ["/", "/group", "/group/data"])
def test_pickles_in_attributes_are_found_wherever_they_are(tmp_path: Path, place: str) -> None:
    """PyTables unpickles any attribute, those of the root group as well."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/data"] = VALUES
        file[place].attrs["x"] = np.void(pickle.dumps(Evil(), 0))
    assert scan(str(tmp_path / "a.h5")).verdict == "dangerous"
