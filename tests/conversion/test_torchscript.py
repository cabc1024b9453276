"""TorchScript is data if its code calls nothing but operators that compute."""

from __future__ import annotations

import io

import pytest
import torch
from builders import archive, mapping, name, tensor, text, torch_zip, whole

from safeweights.conversion import scan
from safeweights.conversion.torchscript import MAX_CODE, torchscript_findings

nn = torch.nn
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Net(nn.Module):
    """A small network of the usual layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return torch.softmax(self.last(x.mean((2, 3))), -1)


class Saves(nn.Module):
    """Writes a file when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "never")
        return x


class Maps(nn.Module):
    """Creates a file when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("never", True, 4) + x


def saved(module: torch.jit.ScriptModule) -> bytes:
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


TRACED = {
    "network": (Net().eval(), torch.ones(1, 3, 8, 8)),
    "lstm": (nn.LSTM(2, 3, batch_first=True), torch.ones(1, 4, 2)),
    "embedding": (
        nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.GELU()),
        torch.ones(1, 2, dtype=torch.long),
    ),
}


@pytest.mark.parametrize("kind", list(TRACED))
def test_traced_modules_of_known_operators_are_clean(kind: str) -> None:
    module, example = TRACED[kind]
    report = scan(saved(torch.jit.trace(module, example)))
    assert report.clean, (report.unread, [each for each in report.findings if each.grade])


@pytest.mark.parametrize("module", [Saves(), Maps()], ids=lambda module: type(module).__name__)
def test_scripts_that_reach_files_are_not(module: nn.Module) -> None:
    report = scan(saved(torch.jit.script(module)))
    assert report.verdict == "unknown"
    assert any("run when it is called" in each.reason for each in report.findings)


@pytest.mark.parametrize(
    "line",
    [
        'torch.from_file("x", True, 4)',
        '"x".from_file(True, 4)',
        '("x").from_file(True, 4)',
        'torch . save (x, "f")',
        'torch.save(x,\n  "f")',
        'ops.aten.save(x, "f")',
        "ops.image.read_file(p)",
        'getattr(x, "save")("f")',
        'y = getattr(x, "save")\n  y("f")',
        "torch.classes.evil.Thing()",
        "a : __torch__.torch.classes.quantized.LinearPackedParamsBase",
        "import os",
        "def __setstate__(self, state: int) -> None:",
        "def save(self, x: str) -> None:",
        "print(x)",
        "fork(f, x)",
        'x = """ """',
        "x = \\\n1",
        "x = \u00e9",
        "x = $y",
        '[torch.relu][0]("f")',
    ],
)
def test_anything_else_that_is_called_is_unknown(line: str) -> None:
    assert list(torchscript_findings(line.encode()))


def test_strings_and_comments_call_nothing() -> None:
    code = b"""x = "torch.save(x)" # torch.save(x)\ny = torch.relu('\\'import os\\'')\n"""
    assert not list(torchscript_findings(code))
    assert list(torchscript_findings(b" " * MAX_CODE + b"  "))


SCRIPT = {"m/constants.pkl": whole(b")"), "m/code/__torch__.py": b"class M(Module):\n  x : int\n"}
MODULE = name("__torch__", "M") + b")\x81"


def test_objects_of_the_script_are_data_only_as_it_writes_them() -> None:
    good = MODULE + mapping(w=tensor()) + b"b"
    assert scan(torch_zip(good, extra=SCRIPT)).clean
    for body in (
        MODULE + b"(Ne",
        MODULE + text("x") + b"b",
        MODULE + b"}b}b",
        name("__torch__", "M") + b"K\x01\x85R",
        name("__torch__.torch.classes.a", "M") + b")\x81}b",
        name("__torch__evil", "M") + b")\x81}b",
    ):
        assert not scan(torch_zip(body, {}, extra=SCRIPT)).clean
    assert not scan(torch_zip(good)).clean  # no script, but a package of this name
    assert not scan(whole(MODULE)).clean
    inner = {"m/a.bin": archive({"x.pkl": whole(MODULE)})}
    assert not scan(torch_zip(good, extra=SCRIPT | inner)).clean


def test_example_inputs_may_have_no_values_and_others_must() -> None:
    pickled = whole(mapping(forward=b"]" + tensor() + b"a"))
    examples = {"m/traced_inputs.pkl": pickled, "m/traced_inputs/0": b""}
    assert scan(torch_zip(b"}", {}, extra=SCRIPT | examples)).clean
    for wrong in (
        {"m/traced_inputs/0": bytes(3)},
        {"m/constants/0": b"", "m/constants.pkl": pickled},
    ):
        assert not scan(torch_zip(b"}", {}, extra=SCRIPT | examples | wrong)).clean
