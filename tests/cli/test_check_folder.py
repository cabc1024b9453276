"""A folder is ok only if every file in it was read and judged."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from safeweights.numpy import save_file
from safeweights.reports.checking import check_path


class Runs:
    """Runs a harmless function where it is unpickled."""

    def __reduce__(self):
        return os.getpid, ()


EVIL = pickle.dumps(Runs(), 2)
EVIL_TEXT = b"cos\ngetpid\n(tR."
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}
TOKENIZER = {
    "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}",
    "tokenizer_class": "LlamaTokenizer",
}


@pytest.fixture
def folder(write, tmp_path):
    """A model as the Hub has it, which is ok."""
    root = tmp_path / "model"
    root.mkdir()
    write(root / "model.safetensors", [("a", "F32", (2, 2))], {"format": "pt"})
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (root / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (root / "merges.txt").write_text("#version: 0.2\nĠ t\n")
    (root / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (root / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60))
    return root


def checked(path):
    return check_path(str(path), strict=False)


def errors(path):
    found = checked(path)
    return found["status"], {
        finding["rule"] for finding in found["findings"] if finding["level"] == "error"
    }


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_model_as_it_is_published_is_ok(folder):
    assert checked(folder)["status"] == "ok", checked(folder)["findings"]


def test_a_pipeline_of_folders_is_ok(folder, write):
    (folder / "model.safetensors").unlink()
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts))
    for part in ("unet", "vae"):
        (folder / part).mkdir()
        write(folder / part / "diffusion_pytorch_model.safetensors", [("a", "F32", (2,))])
        (folder / part / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert checked(folder)["status"] == "ok", checked(folder)["findings"]


HOSTILE = {
    "weights": EVIL,
    "unet/diffusion_pytorch_model.safetensors": EVIL,
    ".model.safetensors": EVIL,
    "notes.txt": EVIL_TEXT,
    "notes": EVIL_TEXT + b"\n",
    "README": b"(lp0\n" * 1000 + EVIL_TEXT,
    "weights.PKL": EVIL,
    "clf.sav": EVIL,
    "weights.model": saved({"a": Runs()}),
    "model.ptl": saved(Runs()),
    "packed.gz": gzip.compress(EVIL),
    "packed": zlib.compress(EVIL),
    "packed.xz": lzma.compress(EVIL),
    "my.model.sig": EVIL,
    "model.safetensors.swtree": EVIL,
    "libop.so": b"\x7fELF\x02\x01\x01" + bytes(60),
    "modeling_x.py": b"import os\n",
    "nested/deep/setup.py": b"import os\n",
    "adapter_config.json": b'{"auto_mapping": {"parent_library": "evil"}}',
    "hydra.yaml": b"_target_: os.system\n",
    "chat_template.jinja": b"{{ ''.__class__ }}",
    "model.t7": b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1" + bytes(60),
    "image.png": b"\x89PNG\r\n\x1a\n" + bytes(60) + zipped(**{"__main__.py": "1"}),
}
UNREAD = {
    "weights.7z": b"7z\xbc\xaf\x27\x1c" + bytes(60),
    "weights.zst": b"\x28\xb5\x2f\xfd" + bytes(60),
    "weights.lz4": b"\x04\x22\x4d\x18" + bytes(60),
    "model.tflite": b"\x1c\0\0\0TFL3" + bytes(60),
    "model.pte": b"\x1c\0\0\0ET12" + bytes(60),
    "blob.dat": b"\x07\xfe\x01\xff" * 40,
    "saved_model.pb": b"\x08\x01\x12\xff",
    "cut.pkl": pickle.dumps(list(range(100)))[:-4],
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_acts_makes_a_folder_bad(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(HOSTILE[name])
    status, found = errors(folder)
    assert status == "bad", checked(folder)["findings"]
    assert found


@pytest.mark.parametrize("name", list(UNREAD))
def test_what_cannot_be_judged_makes_a_folder_unreadable(folder, name, run):
    (folder / name).write_bytes(UNREAD[name])
    assert errors(folder)[0] == "unreadable", checked(folder)["findings"]
    assert run("check", str(folder)).exit_code == 3


def test_links_are_read_where_they_lead_to_files_and_said_where_not(folder, tmp_path):
    blob = tmp_path / "blob"
    shutil.move(folder / "model.safetensors", blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert errors(folder) == ("ok", set())
    (folder / "more").symlink_to(tmp_path)
    assert errors(folder) == ("unreadable", {"unread"})
    (folder / "more").unlink()
    (folder / "gone.json").symlink_to(tmp_path / "nothing")
    assert errors(folder) == ("unreadable", {"unread"})


def test_a_pipe_is_said_and_not_waited_for(folder):
    os.mkfifo(folder / "weights.bin")
    assert errors(folder) == ("unreadable", {"unread"})


def test_an_onnx_model_beside_the_weights(folder):
    def exported(domain):
        node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        return helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))

    (folder / "onnx").mkdir()
    onnx.save(exported(""), folder / "onnx" / "model.onnx")
    assert errors(folder)[0] == "ok"
    onnx.save(exported("custom"), folder / "onnx" / "model.onnx")
    assert errors(folder) == ("bad", {"onnx-custom-operator"})


def test_arrays_and_checkpoints_that_build_data_only_are_ok(folder):
    np.savez(folder / "extra.npz", a=np.zeros(3))
    torch.save({"lr": 0.1, "w": torch.zeros(2)}, folder / "optimizer.pt")
    assert errors(folder)[0] == "ok", checked(folder)["findings"]


def test_names_that_differ_in_case_only_are_said(folder):
    for name in ("A.bin", "a.bin"):
        torch.save({"w": torch.zeros(1)}, folder / name)
    rules = {finding["rule"] for finding in checked(folder)["findings"]}
    assert "name-case" in rules
    assert check_path(str(folder), strict=True)["status"] == "bad"


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_shard_of_another_format_hides_no_template(tmp_path, index, kind):
    template = "{{ ''.__class__ }}"
    shard = tmp_path / ("a.gguf" if kind == "gguf" else "chat_template.jinja")
    if kind == "gguf":
        key = b"tokenizer.chat_template"
        texts = [struct.pack("<Q", len(text)) + text for text in (key, template.encode(), b"x")]
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + texts[0] + struct.pack("<I", 8) + texts[1]
        head += texts[2] + struct.pack("<IQIQ", 1, 2, 0, 0)
        shard.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(8))
    else:
        save_file({"x": np.zeros(2)}, shard, {"k": template})
    (tmp_path / index).write_text(json.dumps({"weight_map": {"x": shard.name}}))
    assert errors(tmp_path) == ("bad", {"template-dunder"})


def test_bookkeeping_is_named_and_hides_no_code(folder):
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "config.json.metadata").write_bytes(b"\0\1")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\xff")
    assert errors(folder)[0] == "ok"
    assert "bookkeeping" in {finding["rule"] for finding in checked(folder)["findings"]}
    (cache / "code.py").write_text("import os")
    assert errors(folder)[0] == "bad"


def test_an_empty_folder_has_no_model(tmp_path):
    assert errors(tmp_path)[0] == "bad"
