"""Files that a loader would run or follow, found by trying: none is called data.

Payloads name `os.getpid` or a path that is not there. Beside them: files that people have, which are data.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from builders import archive, call, integer, many, mapping, name, tensor, text, torch_zip, whole
from onnx import TensorProto, helper

from safeweights.conversion.kinds import examine
from safeweights.conversion.scanning import scan_other_readers
from safeweights.numpy import save
from safeweights.reports.checking import check_path
from safeweights.storage import BytesSource
from safeweights.storage.limits import Limits

GETPID = whole(call(name("os", "getpid")))


def verdict(data: bytes, path: str) -> str:
    return examine(BytesSource(data, path), path).verdict


def keras(**layer: Any) -> bytes:
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as h5:
        h5["layers/dense/vars/0"] = np.zeros((2, 3), "f4")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("config.json", json.dumps(config))
        out.writestr("metadata.json", "{}")
        out.writestr("model.weights.h5", weights.getvalue())
    return file.getvalue()


def tensor_outside() -> TensorProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../secret"
    return weight


def graph(*nodes: onnx.NodeProto, **parts: Any) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], **parts)


def onnx_in_training() -> bytes:
    model = helper.make_model(graph(helper.make_node("Relu", ["x"], ["y"])))
    model.training_info.add().algorithm.CopyFrom(graph(initializer=[tensor_outside()]))
    return model.SerializeToString()


def onnx_in_sparse_attribute() -> bytes:
    node = helper.make_node("Constant", [], ["y"])
    sparse = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    sparse.sparse_tensor.values.CopyFrom(tensor_outside())
    return helper.make_model(graph(node)).SerializeToString()


def onnx_beside_an_own_function() -> bytes:
    model = helper.make_model(graph(helper.make_node("Evil", ["x"], ["y"], domain="own")))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Good", ["a"], ["b"], body, []))
    return model.SerializeToString()


def lambda_json(**more: object) -> bytes:
    layer = {"class_name": "Lambda", "config": {"function": ["4wEA", None, None]}}
    return json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}, **more}).encode()


def numbered(number: int, data: bytes) -> bytes:
    """A field of a message of Protocol Buffers that has contents."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def onnx_that_is_a_pickle() -> bytes:
    """Its first field is BINBYTES, with a length that leads into the documentation."""
    opset = numbered(1, b"unused") + b"\x10\x0d"
    begin = numbered(8, b"\x10\x80\x00" + opset)
    model = (
        begin + helper.make_model(graph(helper.make_node("Relu", ["x"], ["y"]))).SerializeToString()
    )
    pad = 5 + int.from_bytes(begin[1:5], "little") - len(model)
    return model + numbered(6, (b" " * (pad - 5)) + b"0cos\ngetpid\n)R." + b" " * 100)


def onnx_behind(begin: bytes) -> bytes:
    """An operator of a library behind a field that ONNX does not know, and skips."""
    model = helper.make_model(graph(helper.make_node("Evil", ["x"], ["y"], domain="own")))
    return begin + b" " * begin[-1] + model.SerializeToString()


def safetensors_as_a_pickle(data: bytes) -> bytes:
    """A valid file whose header length is BINUNICODE, which leads over the header into the tensor."""
    length = 0x10058  # the text begins at byte 5 and has 256 bytes
    head = b'{"__metadata__":{"k":"'
    text = bytearray(head.ljust(253) + b"0")
    end = b'"},"t":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(data), len(data))
    while length - len(text) > 250:
        text += b"U}" + b"." * 125 + b"0"
    text += b"U" + bytes([100]) + b"." * 100 + b"0"
    left = length - len(text) - 2
    text += b"U" + bytes([left]) + end.rjust(left, b".")
    return struct.pack("<Q", length) + bytes(text) + data


TEMPLATE = b"{{ ''.__class__ }}"
TARGET = b": 1\n_target_: os.getpid\n"
CALL = b"0cos\ngetpid\n)R."
PICKLED_TYPE = b"arrow.py_extension_type"

ATTACKS = {
    "a vocabulary that is a file.keras": keras(
        class_name="StringLookup", module="keras.layers", config={"vocabulary": "/etc/hostname"}
    ),
    "a vocabulary of text vectorization.keras": keras(
        class_name="TextVectorization", module="keras.layers", config={"vocabulary": "http://x/y"}
    ),
    "a vocabulary of integers.keras": keras(
        class_name="IntegerLookup", module="keras.layers", config={"vocabulary": "/etc/hostname"}
    ),
    "a type specification.keras": keras(
        class_name="__typespec__", spec_name="getpid", module="os", config=[]
    ),
    "the same class twice, the second of another module.keras": keras(
        class_name="Dense", module="keras.layers", config={"a": {"class_name": "Dense", "module": "os"}}
    ),
    "model.json": lambda_json(keras_version="2.9.0"),
    "architecture.json": lambda_json(),
    "tfjs/model.json": json.dumps(
        {"modelTopology": {"model_config": json.loads(lambda_json())}}
    ).encode(),
    "training graphs.onnx": onnx_in_training(),
    "a sparse attribute.onnx": onnx_in_sparse_attribute(),
    "an operator beside functions of its domain.onnx": onnx_beside_an_own_function(),
    "1_Dense/config.json": b'{"in_features": 2, "activation_function": "os.getpid"}',
    "0_Words/wordembedding_config.json": b'{"tokenizer_class": "evil.Tokenizer"}',
    "config.json": b'{"class_path": "os.getpid", "init_args": {}}',
    "mlx/config.json": b'{"model_type": "llama", "model_file": "../net.py"}',
    "reranker/config.json": b'{"sentence_transformers": {"activation_fn": "os.getpid"}}',
    "old reranker/config.json": b'{"sbert_ce_default_activation_function": "os.getpid"}',
    "lora/adapter_config.json": b'{"megatron_config": {"a": 1}, "megatron_core": "os"}',
    "near/adapter_config.json": b'{"megatron_core": "megatron.core_of_mine"}',
    "remote/adapter_config.json":
        b'{"auto_mapping": {"base_model_class": "M", "parent_library": "transformers_modules.a"}}',
    "modular/modular_model_index.json":
        b'{"unet": [null, null, {"type_hint": ["my_unet", "Net"]}]}',
    "modular twice/modular_model_index.json":
        b'{"unet": ["my_unet", "Net", {"type_hint": ["diffusers", "UNet2DConditionModel"]}]}',
    "config.yaml": b"model:\n  class_path: os.getpid\n",
    "table.arrow": b"ARROW1\0\0" + bytes(100) + PICKLED_TYPE + GETPID,
    **{
        f"table{shift}.parquet": b"PAR1" + base64.b64encode(bytes(shift) + PICKLED_TYPE + GETPID)
        for shift in range(4)
    },
    "HDF5 behind an image.png": b"\x89PNG\r\n\x1a\n".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100),
    "HDF5 behind text.txt": b"text\n".ljust(1024) + b"\x89HDF\r\n\x1a\n" + bytes(100),
    "entities.xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "late.xml": b'<?xml version="1.0"?><!--' + b"-" * 5000 + b' --><PMML version="4.4"/>',
    "late net.xml": b'<?xml version="1.0"?><!--' + b"." * 5000 + b'--><net name="a"><layers/></net>',
    "a text that is a pickle in an archive.zip": archive({"README.txt": b"cos\ngetpid\n(tR."}),
    "code in an archive.zip": archive({"a.py": b"import os\n"}),
    "settings in an archive.zip": archive({"a.yaml": b"!!python/name:os.getpid\n"}),
    "a template in an archive.zip": archive({"a.jinja": b"{{ x.__class__ }}"}),
    "dill.pkl": whole(call(name("dill._dill", "_create_function"), b"N", b"}")),
    "cloudpickle.pkl": whole(call(name("cloudpickle.cloudpickle", "_make_function"), b"N", b"}")),
    "a partial.pkl": whole(name("functools", "partial") + name("os", "getpid") + b"\x85R"),
    "a method of a module.pt": torch_zip(
        name("torch.nn.modules.linear", "Linear") + b")\x81" + mapping(forward=name("os", "getpid")) + b"b"
    ),
    "a hook of a tensor.pt": torch_zip(
        call(name("torch._utils", "_rebuild_parameter_with_state"), tensor(), b"\x88", b"}",
             mapping(a=name("os", "getpid")))
    ),
    "a default factory.pkl": whole(call(name("collections", "defaultdict"), name("os", "getpid"))),
    "a codec.pkl": whole(call(name("_codecs", "decode"), b"C\x01a", text("unicode_escape"))),
    "a counter of calls.pkl": whole(call(name("collections", "Counter"), call(name("os", "getpid")))),
    "a set state.pkl": whole(name("numpy.ma.core", "_mareconstruct") + b")R}b"),
    "a tag with a verbatim name.yaml": b"a: !<tag:yaml.org,2002:python/object/new:os.getpid> []\n",
    "a script of Windows.ps1": b"Get-Process",
    "a model card with a template.json": json.dumps({"chat_template": "{{ ''.__class__ }}"}).encode(),
    "a pipeline of its own/model_index.json": b'{"_class_name": "P", "unet": ["my_unet", "Net"]}',
    "a range.pkl": whole(call(name("builtins", "range"), call(name("os", "getpid")))),
    **{
        f"{number}/chat_template.jinja": begin + TEMPLATE
        for number, begin in enumerate((
            b"<html>", b"<?xml ", b"GIF87a", b"%PDF-", b"lmgg", b"PAR1", b"version https://git-lfs",
            b"0000ftyp", b"RIFF0000WEBP", b"tree\nversion=v",
        ))
    },
    **{
        f"{number}/config.yaml": begin + TARGET
        for number, begin in enumerate((b"<html>", b"GIF87a", b"%PDF-1 4\n---\na", b"CBM1", b"a:  ftyp"))
    },
    "a template in weights/chat_template.jinja": save({"a": np.zeros(1)}, {"k": TEMPLATE.decode()}),
    "a template in an archive/chat_template.jinja": archive({"README.txt": TEMPLATE}),
    "settings of a video/config.json": b'{  "ftyp": 1, "auto_map": {"AutoModel": "evil.Model"}}',
    "a parquet table.onnx": onnx_behind(b"PAR1"),
    "trees.onnx": onnx_behind(b"binf"),
    "a model behind text.onnx": onnx_behind(b"bz"),
    "an image.tflite": b"\xff\xd8\xff\0TFL3" + bytes(100),
    "a text.nemo": b"a model",
    "a pickle.onnx": onnx_that_is_a_pickle(),
    "a module with a name that is no identifier.txt":
        b"c_sysconfigdata-x\nbuild_time_vars\n0cos\ngetpid\n)R.",
    "a folder of prose.txt": b"configuration of it\n__path__\n0cos\ngetpid\n)R.",
    "a pickle.safetensors": safetensors_as_a_pickle(CALL),
    "a large key.data-00000-of-00001": b"Nr" + struct.pack("<I", 5_000_000) + CALL,
    "a large key that is not counted.data-00000-of-00001":
        b"Nr" + struct.pack("<I", 5_000_000) + b"0\x8c\x02os\x94\x8c\x06getpid\x94\x93)R.",
    "a large key that is recalled.data-00000-of-00001":
        b"Nr" + struct.pack("<I", 5_000_000) + b"0j" + struct.pack("<I", 5_000_000) + CALL,
    "a call at the end of a line that does not end.txt": b"(S'a'\nios\nsystemx",
    "a large integer.data-00000-of-00001": b"\x8b" + struct.pack("<I", 5000) + bytes(5000) + CALL,
    "an argument past its frame.data-00000-of-00001":
        b"\x95" + struct.pack("<Q", 3) + b"NC\x02ab" + CALL,
    "a deep path.onnx": helper.make_model(
        graph(initializer=[tensor_outside()])
    ).SerializeToString(),
}  # fmt: skip

ORDINARY = {
    "words.keras": keras(
        class_name="StringLookup", module="keras.layers", config={"vocabulary": ["a", "b"]}
    ),
    "dense.keras": keras(class_name="Dense", module="keras.layers", config={"units": 3}),
    "architecture.json": lambda_json().replace(b"Lambda", b"Dense"),
    "1_Dense/config.json": b'{"activation_function": "torch.nn.modules.activation.Tanh"}',
    "gpt2/config.json": b'{"activation_function": "gelu_new", "tokenizer_class": "GPT2Tokenizer"}',
    "0_Words/wordembedding_config.json":
        b'{"tokenizer_class": "sentence_transformers.models.tokenizer.WhitespaceTokenizer"}',
    "reranker/config.json":
        b'{"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}',
    "bloom/config.json": b'{"activation_fn": "gelu"}',
    "lora/adapter_config.json": b'{"peft_type": "LORA", "megatron_core": "megatron.core"}',
    "encoder/adapter_config.json":
        b'{"auto_mapping": {"base_model_class": "BertModel", "parent_library": '
        b'"transformers.models.bert.modeling_bert"}}',
    "pipeline/model_index.json":
        b'{"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "vae": [null, null]}',
    "modular/modular_model_index.json":
        b'{"unet": ["diffusers", "U", {"type_hint": ["diffusers", "U"], "subfolder": "unet"}]}',
    "table.arrow": b"ARROW1\0\0" + bytes(100),
    "table.parquet": b"PAR1" + base64.b64encode(b"ARROW:schema" * 20),
    "image.xml": b'<?xml version="1.0"?>\n<svg><network/></svg>',
    "relu.onnx": helper.make_model(
        graph(helper.make_node("Relu", ["x"], ["y"]))
    ).SerializeToString(),
    "texts.zip": archive({"README.txt": b"A model.\n", "weights/version": b"3\n"}),
    "README.md": b"# A model\n\nimport torch; torch.load('x')\n",
    "vocab.txt": b"[PAD]\n[UNK]\ncos\nthe\n",
    "merges.txt": b"#version: 0.2\nc o\ni n\n",
    "tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 4096}',
    "generation_config.json": b'{"temperature": 0.6, "do_sample": true}',
    "special_tokens_map.json": b'{"bos_token": {"content": "<s>", "lstrip": false}}',
    "config.yaml": b"class_names: [cat, dog]\nlr: 1e-3\n",
    "optimizer.pt": torch_zip(mapping(state=mapping(a=tensor()), groups=b"](}" + b"e")),
    "counts.pkl": whole(call(name("collections", "Counter"), mapping(a=integer(1)))),
    "points.pkl": whole(many(integer(1), b"G?\xe0\0\0\0\0\0\0", b"N")),
    "LICENSE": b"Permission is hereby granted, free of charge ...\n",
    "a long paragraph.txt": b"Pretrained on text. " * 1000,
    "a long line.txt": b"In this work we train. " * 1000,
    "long lines of prose.txt": b"convolutions of it. " * 500 + b"\n" + b"a b. " * 2000 + b"\n",
    "words.txt": b"car parks\nof cities\ncats\ndogs\n",
    "one word.txt": b"cat",
    "lines that begin with c.txt": b"comments of\nit\ninclude it",
    "a license.txt": b"Copyright (c) 1992-2013 The University\n".ljust(113) + b"r    of the first part\n",
    "a weight.data-00000-of-00001": b"\x8b" + struct.pack("<I", 5000) + bytes(6000),
    "a weight behind a frame.data-00000-of-00001": b"\x95" + b"\x3f" * 100,
    "a pointer/tokenizer.json":
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9085657\n",
    "an error page/config.json": b"<!DOCTYPE html><html>not found</html>",
    "an empty file/config.json": b"",
}  # fmt: skip


@pytest.mark.parametrize("path", list(ATTACKS))
def test_nothing_that_acts_is_called_data(path: str, tmp_path: Path) -> None:
    assert verdict(ATTACKS[path], path) != "data"
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(ATTACKS[path])
    assert check_path(str(file), strict=False)["status"] != "ok"
    assert check_path(str(tmp_path), strict=False)["status"] != "ok"


@pytest.mark.parametrize("path", list(ORDINARY))
def test_ordinary_files_are_data(path: str) -> None:
    found = examine(BytesSource(ORDINARY[path], path), path)
    assert found.verdict == "data", found.concerns


@pytest.mark.parametrize("path", ["a.txt", "a.safetensors", "a.onnx_data"])
def test_a_call_behind_more_opcodes_than_are_read(path: str) -> None:
    late = b"N0" * 3000 + b"N" + CALL
    data = safetensors_as_a_pickle(late) if path.endswith(".safetensors") else late
    source = BytesSource(data, path)
    for opcodes, found in ((10_000, "acts"), (4_000, "unread")):
        assert examine(source, path, limits=Limits(opcodes=opcodes)).verdict == found
    assert not scan_other_readers(source, limits=Limits(opcodes=4_000)).clean
