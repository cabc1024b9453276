"""Kinds of files: what each is recognised as, and what loading it could do."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from builders import evil
from onnx import TensorProto, helper

from safeweights.conversion.grading import Grade
from safeweights.conversion.json_text import DuplicateKeyError
from safeweights.conversion.keras_settings import keras_findings
from safeweights.conversion.kinds import KINDS, Concern, examine, recognize, templates
from safeweights.conversion.kinds.settings import json_concerns, yaml_concerns
from safeweights.conversion.kinds.templates import template_concerns
from safeweights.numpy import save
from safeweights.reports.checking import check_path
from safeweights.storage import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from safeweights.conversion.kinds import Examination, Template


def examined(data: bytes, name: str = "file") -> Examination:
    return examine(BytesSource(data, name), name)


def rules(found: Iterable[Concern | Template]) -> set[str]:
    return {each.rule for each in found if isinstance(each, Concern)}


def zipped(*members: str, content: bytes = b"x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member in members:
            archive.writestr(member, content)
    return file.getvalue()


def tarred(*members: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member in members:
            archive.addfile(tarfile.TarInfo(member))
    return file.getvalue()


WEIGHTS = save({"a": np.arange(6, dtype="f4")}, {"format": "pt"})

RECOGNISED = {
    "gguf": b"GGUF\x03\0\0\0" + bytes(16),
    "tflite": b"\x1c\0\0\0TFL3" + bytes(64),
    "executorch": b"\x1c\0\0\0ET12" + bytes(64),
    "tensorrt": b"ftrt" + bytes(64),
    "catboost": b"CBM1" + bytes(64),
    "lightgbm": b"tree\nversion=v4\nnum_class=1\n",
    "torch7": b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1" + bytes(64),
    "rds": b"X\n\0\0\0\x03\0\x04\x03\0" + bytes(20),
    "llamafile": b"MZqFpD='\n" + bytes(64),
    "program": b"\x7fELF\x02\x01\x01" + bytes(64),
    "java": b"\xca\xfe\xba\xbe\0\0\0\x41" + bytes(64),
    "wasm": b"\0asm\x01\0\0\0" + bytes(8),
    "lua": b"\x1bLua\x54" + bytes(64),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(26),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "lz4": b"\x04\x22\x4d\x18" + bytes(20),
    "rar": b"Rar!\x1a\x07\x01\0" + bytes(20),
    "mar": zipped("MAR-INF/MANIFEST.json", "handler.py"),
    "torch-package": zipped("p/.data/extern_modules", "p/data/x.pkl"),
    "torch-export": zipped("m/archive_format", "m/models/model.json"),
    "skops": zipped("schema.json", "0.npy"),
    "keras": zipped("config.json", "model.weights.h5"),
    "nemo": tarred("./model_config.yaml", "./model_weights.ckpt"),
    "safetensors": WEIGHTS,
    "image": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "audio": b"ID3\x04\0\0" + bytes(20),
    "video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "events": b"\x18"
    + bytes(7)
    + b"\xa3\x7f\x4b\x22\x09"
    + bytes(8)
    + b"\x1a\x0dbrain.Event:2"
    + bytes(4),
    "pdf": b"%PDF-1.7\n",
    "parquet": b"PAR1" + bytes(20),
    "pmml": b'<?xml version="1.0"?><PMML version="4.4"></PMML>',
    "openvino": b'<?xml version="1.0"?><net name="m"><layers></layers></net>',
    "html": b"<!DOCTYPE html><html></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n",
    "text": "Ein Modell für alles.\n".encode(),
    "empty": b"",
}


@pytest.mark.parametrize("kind", list(RECOGNISED))
def test_a_kind_is_recognised_by_its_bytes_whatever_the_name(kind: str) -> None:
    for name in ("file", "model.safetensors", "weights.bin"):
        found = examined(RECOGNISED[kind], name).kind
        assert found is not None
        assert found.id == kind, name


def test_kinds_of_text_go_by_their_name() -> None:
    kinds = {"a.py": "python", "b.ipynb": "notebook", "c.jinja": "jinja", "d.yaml": "yaml", "e.sh": "code",
             "f.json": "json", "MLmodel": "mlflow", "g.md": "text"}  # fmt: skip
    found = {name: examined(b"a: 1", name).kind for name in kinds}
    assert {name: kind.id for name, kind in found.items() if kind} == kinds


def test_every_kind_that_is_not_data_says_what_it_can_do() -> None:
    assert all(kind.can for kind in KINDS.values() if kind.power in {"acts", "unknown", "reads"})


@pytest.mark.parametrize(
    "kind", ["tflite", "executorch", "7z", "zstd", "lz4", "skops", "torch-export", "nemo", "pmml"]
)
def test_a_kind_that_is_not_read_cannot_be_judged(kind: str) -> None:
    found = examined(RECOGNISED[kind])
    assert found.verdict == "unread"
    assert "it is not read here" in found.concerns[0].message


@pytest.mark.parametrize(
    "kind", ["tensorrt", "torch7", "rds", "llamafile", "program", "java", "mar", "torch-package"]
)
def test_a_kind_that_runs_code_acts(kind: str) -> None:
    assert examined(RECOGNISED[kind], "weights.safetensors").verdict == "acts"


@pytest.mark.parametrize(
    "kind",
    ["safetensors", "image", "audio", "video", "events", "text", "lightgbm", "catboost", "empty"],
)
def test_data_is_data(kind: str) -> None:
    assert examined(RECOGNISED[kind], "file.txt").concerns == ()


def test_bytes_of_no_kind_cannot_be_judged() -> None:
    found = examined(b"\x07\x03\xfe\xff" * 100, "weights.dat")
    assert (found.kind, found.verdict) == (None, "unread")
    assert rules(found.concerns) == {"unknown-kind"}


def test_a_name_that_programs_run_counts_whatever_is_in_the_file() -> None:
    assert "name-python" in rules(examined(WEIGHTS, "model.py").concerns)
    assert "name-program" in rules(examined(WEIGHTS, "libop.so.1").concerns)
    for name in ("setup.py.", "setup.py. .", "a/setup.PY "):  # Windows drops what is behind
        assert examined(b"import os\n", name).verdict == "acts"
    assert examined(b'{"auto_map": {"AutoModel": "x.Y"}}', "config.json.").verdict == "acts"


def test_a_file_that_ends_in_a_zip_archive_acts() -> None:
    found = examined(b"\x89PNG\r\n\x1a\n" + bytes(100) + zipped("__main__.py"), "logo.png")
    assert "polyglot" in rules(found.concerns)


def test_four_bytes_of_an_end_record_are_no_archive() -> None:
    image = b"\x89PNG\r\n\x1a\n" + b"PK\x05\x06" + b"." * 60
    assert examined(image, "a.png").verdict == "data"


@pytest.mark.parametrize("name", ["weights", "README.md", "vocab.txt", "a.json"])
def test_a_pickle_is_judged_under_any_name(name: str) -> None:
    assert examined(evil(), name).verdict == "acts"
    text = b"cos\nsystem\n(S'echo'\ntR.\n"
    assert examined(text, name).verdict == "acts"


def test_a_long_pickle_is_a_pickle_and_no_damaged_header() -> None:
    found = examined(pickle.dumps(b"x" * 100_000, 4))
    assert found.kind is not None
    assert found.kind.id == "pickle"
    assert found.verdict == "data"


# --- ONNX


def model(domain: str = "", location: str | None = None, nested: bool = False) -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    if location is not None:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", location
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    if nested:
        condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
        inner = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], "outer", [condition], [y])
    return helper.make_model(graph).SerializeToString()


def test_an_onnx_model_of_standard_operators_is_data() -> None:
    found = examined(model(), "model.onnx")
    assert found.kind is not None
    assert (found.kind.id, found.verdict) == ("onnx", "data")
    onnx.load_model_from_string(model())


@pytest.mark.parametrize("nested", [False, True])
def test_custom_operators_of_an_onnx_model_are_found_at_any_depth(nested: bool) -> None:
    assert rules(examined(model("my.ops", nested=nested)).concerns) == {"onnx-custom-operator"}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "place", ["../../etc/passwd", "/etc/passwd", "C:\\x", "a/../../b", "http://x/y"]
)
def test_external_data_outside_the_folder_acts(place: str, nested: bool) -> None:
    found = examined(model(location=place, nested=nested))
    assert found.verdict == "acts"
    assert rules(found.concerns) == {"onnx-external-data"}


def test_external_data_beside_the_model_is_data() -> None:
    assert examined(model(location="weights/model.data")).verdict == "data"


def test_a_model_whose_bytes_are_all_ascii_is_no_text() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="custom")
    data = helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()
    assert data.isascii()
    assert examined(data).verdict == "unknown"


def test_a_function_of_the_model_is_no_custom_operator() -> None:
    proto = onnx.load_model_from_string(model("own"))
    body = [helper.make_node("Sub", ["a", "b"], ["c"])]
    proto.functions.append(helper.make_function("own", "Add", ["a", "b"], ["c"], body, []))
    assert examined(proto.SerializeToString()).verdict == "data"
    proto.functions[0].node.append(helper.make_node("Bad", ["a"], ["d"], domain="elsewhere"))
    assert rules(examined(proto.SerializeToString()).concerns) == {"onnx-custom-operator"}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_onnx_model_is_never_data(cut: int) -> None:
    assert examined(model()[:-cut], "model.onnx").verdict == "unread"


def test_a_tokenizer_of_sentencepiece_is_data() -> None:
    piece = field(1, field(1, "▁a".encode()), b"\x15\0\0\x80\x3f")
    proto = piece * 3 + field(2, field(1, b"corpus")) + field(3, field(1, b"nmt_nfkc"))
    found = examined(proto, "tokenizer.model")
    assert found.kind is KINDS["sentencepiece"]
    assert found.verdict == "data"
    assert examined(proto[:-1], "tokenizer.model").verdict == "unread"


def test_external_data_of_onnx_goes_by_its_name_unless_it_is_a_pickle() -> None:
    assert examined(np.arange(9, dtype="f4").tobytes(), "model.onnx_data").verdict == "data"
    assert examined(evil(), "model.onnx_data").verdict == "acts"


# --- SavedModel


def field(number: int, *content: bytes) -> bytes:
    data = b"".join(content)
    length = len(data)
    size = b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def saved_model(*operators: str, library: tuple[str, ...] = ()) -> bytes:
    nodes = [field(1, field(1, b"n"), field(2, each.encode())) for each in operators]
    inner = [field(3, field(1, b"n"), field(2, each.encode())) for each in library]
    functions = [field(2, field(1, *inner))] if library else []
    return b"\x08\x01" + field(2, field(2, *nodes, *functions))


def test_a_graph_of_known_operators_is_data() -> None:
    assert (
        examined(saved_model("Const", "MatMul", library=("Relu",)), "saved_model.pb").verdict
        == "data"
    )


def test_operators_that_reach_files_or_python_act() -> None:
    for graph in (saved_model("PyFunc"), saved_model("Const", library=("ReadFile",))):
        found = examined(graph, "x/saved_model.pb")
        assert found.verdict == "acts"
        assert rules(found.concerns) == {"tensorflow-operator"}


def node(label: str, operator: str, *inputs: str) -> bytes:
    return b"".join([field(1, label.encode()), field(2, operator.encode()),
                     *(field(3, each.encode()) for each in inputs)])  # fmt: skip


@pytest.mark.parametrize(
    ("place", "status"), [("filename", "data"), ("p", "data"), ("c", "acts"), ("i", "acts")]
)
@pytest.mark.parametrize("in_function", [True, False])
def test_a_model_is_saved_where_the_caller_says(place: str, status: str, in_function: bool) -> None:
    nodes = [
        node("c", "Const"), node("p", "Placeholder"), node("i", "Identity", "c:0"),
        node("j", "StringJoin", place, "c"), node("s", "ShardedFilename", "j:output:0", "c"),
        node("w", "SaveV2", "s:filename:0", "c"), node("k", "Pack", "s", "^w"),
        node("m", "MergeV2Checkpoints", "k", place, "^w"),
    ]  # fmt: skip
    graph = field(2, field(1, *(field(3, each) for each in nodes)))
    if not in_function:
        graph = b"".join(field(1, each) for each in nodes)
    assert examined(b"\x08\x01" + field(2, field(2, graph)), "saved_model.pb").verdict == status


@pytest.mark.parametrize("place", [b"Placeholder", b"Const"])
def test_a_graph_of_long_ways_takes_linear_time(place: bytes) -> None:
    """In processor time: a second. To follow the way of each writer takes a minute."""

    def node(name: bytes, operator: bytes, *inputs: bytes) -> bytes:
        return field(1, field(1, name), field(2, operator), *(field(3, each) for each in inputs))

    count = 10_000
    nodes = [node(b"0", place)]
    nodes += [node(b"%d" % n, b"Identity", b"%d" % (n - 1)) for n in range(1, count)]
    nodes += [node(b"s%d" % n, b"SaveV2", b"%d" % (count - 1)) for n in range(count)]
    before = time.process_time()
    found = examined(b"\x08\x01" + field(2, field(2, b"".join(nodes))), "saved_model.pb")
    assert time.process_time() - before < 20
    assert found.verdict == ("data" if place == b"Placeholder" else "acts")


def test_a_model_of_many_domains_takes_linear_time() -> None:
    """In processor time: two seconds. To copy the domains for each of them takes two minutes."""
    nodes = b"".join(field(1, field(4, b"E"), field(7, b"d%d" % n)) for n in range(60_000))
    before = time.process_time()
    found = examined(b"\x08\x08" + field(7, nodes) + field(8, b"\x10\x0d"), "a.onnx")
    assert time.process_time() - before < 30
    assert (found.verdict, len(found.concerns)) == ("unknown", 100)


def test_an_operator_that_is_not_known_is_unknown() -> None:
    assert examined(saved_model("MyOwnOp"), "saved_model.pb").verdict == "unknown"


# --- settings

CODE = {
    "auto-map": {"auto_map": {"AutoModel": "modeling_x.Model"}},
    "trust-remote-code": {"nested": [{"trust_remote_code": True}]},
    "use-kernels": {"use_kernels": True},
    "remote-kernel": {"_attn_implementation_internal": "org/kernel"},
    "target": {"model": {"_target_": "os.system"}},
    "custom-code": {"_class_name": ["pipeline", "Mine"]},
}


@pytest.mark.parametrize("rule", list(CODE))
def test_settings_that_load_code(rule: str) -> None:
    data = json.dumps(CODE[rule]).encode()
    assert rules(json_concerns(data, "config.json")) == {rule}
    assert examined(data, "config.json").verdict == "acts"


def test_peft_and_pipelines_that_name_modules() -> None:
    peft = {"auto_mapping": {"base_model_class": "M", "parent_library": "evil"}}
    assert rules(json_concerns(json.dumps(peft).encode(), "adapter_config.json")) == {"auto-map"}
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    assert not rules(json_concerns(json.dumps(parts).encode(), "model_index.json"))
    parts["unet"] = ["my_unet", "Mine"]
    assert rules(json_concerns(json.dumps(parts).encode(), "model_index.json")) == {"custom-code"}


def test_settings_of_an_ordinary_model_are_data() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "auto_map": None, "torch_dtype": "bfloat16",
        "_attn_implementation": "sdpa", "trust_remote_code": False,
    }  # fmt: skip
    assert examined(json.dumps(config).encode(), "config.json").concerns == ()


def test_json_that_is_none_is_unread() -> None:
    assert rules(examined(b"{", "config.json").concerns) == {"json"}
    assert examined(b"[" * 100_000, "config.json").verdict == "unread"


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]", "a: !apply:os.system [echo]", "_target_: os.system",
        '"_targ\\x65t_": os.system', "{a: {_target_: os.system}}", "trust_remote_code: true",
        "flavors:\n  python_function:\n    loader_module: evil", "a: !<tag:yaml.org,2002:python/name:x> 1",
    ],
)  # fmt: skip
def test_yaml_that_builds_code(text: str) -> None:
    assert examined(text.encode(), "model_config.yaml").verdict == "acts"


def test_ordinary_yaml_is_data() -> None:
    text = (
        b"model:\n  type: llama # the _targets_ of it\n  dropout: 0.1\ntrust_remote_code: false\n"
    )
    assert not list(yaml_concerns(text, "config.yaml"))
    assert not list(yaml_concerns(b"loader_module: mlflow.sklearn\n", "MLmodel"))
    for text in (
        b"trust_remote_code: false  # set to true for Phi\n  # and Qwen\nlr: 1\n",
        b"- trust_remote_code: false\n  lr: 1\n",
        b"a: {trust_remote_code: false,\n  lr: 1}\n",
        b"trust_remote_code: no\n\n",
    ):
        assert not list(yaml_concerns(text, "config.yaml")), text


def test_keras_classes() -> None:
    def grades(replaced: str = "", by: str = "", **node: object) -> list[Grade]:
        text = json.dumps({"class_name": "Sequential", "config": {"layers": [node]}})
        return [grade for grade, _ in keras_findings(text.replace(replaced, by).encode())]

    assert grades(class_name="Dense", module="keras.layers") == []
    assert grades(class_name="DTypePolicy", module="keras") == []
    assert grades(class_name="Lambda") == [Grade.DANGEROUS]
    assert grades("Lambda", "\\u004cambda", class_name="Lambda") == [Grade.DANGEROUS]
    assert grades(class_name="function", module="builtins", config="eval") == [Grade.DANGEROUS]
    assert grades(class_name="function", module="keras.utils", config="get_file") == [Grade.UNKNOWN]
    for module in ("evil", "keras_evil", "keras_evil.layers"):
        assert grades(class_name="Dense", module=module) == [Grade.UNKNOWN]
    assert grades(class_name="Mine") == [Grade.UNKNOWN]
    assert grades(optimizer="adam", loss="mse", metrics=["AUC", "mae"]) == []
    for own in ({"loss": "mine"}, {"metrics": ["mae", "mine"]}):
        assert grades(optimizer_config={}, **own) == [Grade.UNKNOWN]


def test_a_key_that_occurs_twice_is_unread() -> None:
    text = b'{"a": {"auto_map": {"AutoModel": "x.Y"}, "auto_map": {}}}'
    (concern,) = json_concerns(text, "config.json")
    assert (concern.power, concern.rule) == ("unread", "json-duplicate")
    with pytest.raises(DuplicateKeyError, match="`class_name` occurs twice"):
        list(keras_findings(b'{"class_name": "Lambda", "class_name": "Dense"}'))


@pytest.mark.parametrize(
    "text",
    [
        b"%TAG !p! tag:yaml.org,2002:python/object/apply:\n---\na: !p!os.system [x]\n",
        b"a: !!pyth%6fn/object/apply:os.system [x]\n",
        "a: !!python/object/apply:os.system [x]\n".encode("utf-16"),
        b'"_targ\\\n  et_": os.system\n',
        b"? _target_ # a comment\n: os.system\n",
        b"- &k _target_\n- {*k : os.system}\n",
        b"- &k !!str '_target_'\n- {*k : os.system}\n",
        b'chat_template:\n  "{{ config.__class__.__init__\n  }}"\n',
        b"a: !applyref:os.system [x]\n",
        b"a:\n  - trust_remote_code: off\n\n     true\n",
        b"trust_remote_code: 'no # x'\n",
        *(
            text.replace("\n", end).encode()
            for end in ("\r", "\x85", "\u2028", "\u2029")
            for text in (
                "#\n%TAG ! tag:yaml.org,2002:python/\n--- !object/apply:os.system [x]\n",
                "? _target_ # a comment\n: os.system\n",
                '"_targ\\\n  et_": os.system\n',
            )
        ),
    ],
)
def test_yaml_that_is_spelt_in_other_ways(text: bytes) -> None:
    assert examined(text, "config.yaml").verdict == "acts"


@pytest.mark.parametrize(
    "part",
    [
        b"&",
        b"!",
        b"!<",
        b"!<,",
        b"!a%",
        b"_target_ #",
        b"_target_\n#\n",
        b"& ",
        b"&a !",
        b"_target_ ",
    ],
)
def test_yaml_takes_linear_time(part: bytes) -> None:
    """In processor time: 0.2 s. What is quadratic takes from one minute to an hour."""
    before = time.process_time()
    list(yaml_concerns(part * (1_000_000 // len(part)), "a.yaml"))
    assert time.process_time() - before < 20


def test_of_thousands_of_settings_the_worst_hundred_are_kept() -> None:
    found = examined(b"_target_: a\n" * 1000, "a.yaml")
    assert len(found.concerns) == 100
    layers = [{"class_name": f"Mine{number}"} for number in range(150)]
    text = json.dumps({"class_name": "Mine", "layers": layers, "auto_map": {"AutoModel": "x.Y"}})
    found = examined(text.encode(), "a.json")
    assert (found.verdict, len(found.concerns), found.concerns[0].rule) == ("acts", 100, "auto-map")


def test_a_chat_template_in_yaml_is_neither_a_pickle_nor_an_attack() -> None:
    text = b"chat_template:\n  '{% for m in messages %}{{ m[''role''] }}: {{ m[''text'']\n  }}{% endfor %}'"
    assert examined(text, "config.yaml").verdict == "data"


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
def test_every_template_of_a_gguf_file_is_read(key: str, tmp_path: Path) -> None:
    def gguf(template: bytes) -> bytes:
        fields = (key.encode(), struct.pack("<I", 8), template)
        texts = [struct.pack("<Q", len(each)) + each for each in (fields[0], fields[2])]
        return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + texts[0] + fields[1] + texts[1]

    path = tmp_path / "model.gguf"
    for template, status in ((b"{{ m }}", "ok"), (b"{{ ''.__class__ }}", "bad")):
        path.write_bytes(gguf(template))
        assert check_path(str(path), strict=False)["status"] == status
        assert (examined(gguf(template), "model.gguf").verdict == "acts") == (status == "bad")


# --- templates

HARMLESS = [
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- endif %}{{- raise_exception('no') if not messages }}",
    "{%- for m in messages %}{%- if m.content.split('</think>')[-1].strip() %}"
    "{{ m.content|tojson(indent=4) }}"
    "{%- endif %}{{ messages[loop.index0 - 1].role }}{%- endfor %}",
    "{% macro show(x) %}{{ x }}{% endmacro %}{% set ns = namespace(found=false) %}{{ strftime_now('%d') }}",
    "{%- for key, value in tool.parameters.items() %}{{ key ~ ': ' ~ value['type'] }}{% endfor %}",
    "Text about __init__ and os.system outside of code.",
    "{# a comment about x|attr(y) and __class__ #}{% raw %}{{ ''.__class__ }}{% endraw %}",
    "{{ {'a': {'b': 1}} }} the __init__ of {{ tools|map(attribute='name')|join(', ') }}",
    "{{ '_' ~ messages|selectattr('role', 'equalto', 'user')|list ~ '_' }}",
]
HOSTILE = {
    "{{ ''.__class__.__mro__ }}": "template-dunder",
    "{{ ''['__class__'] }}": "template-dunder",
    "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}": "template-dunder",
    "{{ x|attr('\\u005f_globals__') }}": "template-dunder",
    "{% set a = x|attr(y) %}": "template-attr",
    "{{ x['_' ~ '_class_' ~ '_'] }}": "template-built-name",
    "{{ x[('_','_class')|join] }}": "template-built-name",
    "{% include '/etc/passwd' %}": "template-loads",
    "{%- from 'a' import b %}": "template-loads",
    "{{ '}}' ~ ''.__class__ }}": "template-dunder",
    '{{ "%}" }}{% set a = x|attr(y) %}': "template-attr",
    "{# {{ ' #}{% set a = x|attr(y) %}{# ' #}": "template-attr",
    "{% raw %}{# {% endraw %}{{ x|attr(y) }}": "template-attr",
    "{%- raw -%}{{ ' {%+ endraw %}{{ x|attr(y) }}": "template-attr",
    "{{ x|attr(y)": "template-attr",
    "{{ lipsum }}": "template-object",
    "{{ cycler }}": "template-object",
    "{% if x %}{{ messages|map(attribute='__class__')|list }}{% endif %}": "template-dunder",
    "{{ messages|map(attribute='_' ~ '_class_' ~ '_')|list }}": "template-built-name",
    "{{ messages|groupby(('_', '_class_')|join) }}": "template-built-name",
    "{{ ''['_' '' '_class_' \n '_'] }}": "template-dunder",
    "{{ {'a': {}}.__class__ }}": "template-dunder",
    "{% if {'a': {'b': 1}}.__class__ %}{% endif %}": "template-dunder",
}


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_chat_templates_are_data(text: str) -> None:
    assert not list(template_concerns(text, "chat_template"))
    data = json.dumps({"chat_template": text}).encode()
    assert examined(data, "tokenizer_config.json").verdict == "data"


@pytest.mark.parametrize("text", list(HOSTILE))
def test_templates_that_reach_further(text: str) -> None:
    assert HOSTILE[text] in rules(template_concerns(text, "chat_template"))
    named = json.dumps({"chat_template": [{"name": "default", "template": text}]}).encode()
    assert HOSTILE[text] in rules(examined(named, "tokenizer_config.json").concerns)
    assert HOSTILE[text] in rules(examined(text.encode(), "chat_template.jinja").concerns)


def test_templates_that_are_too_long_together_are_unread() -> None:
    many = [{"name": str(i), "template": "x" * 300_000} for i in range(4)]
    found = examined(json.dumps({"chat_template": many}).encode(), "tokenizer_config.json")
    assert rules(found.concerns) == {"template-size"}


def test_a_template_of_openings_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in words looked at: a search from every opening to the end would be quadratic."""
    looked: list[int] = []
    original = templates._WORD

    class Counting:
        def search(self, text: str, at: int) -> object:
            looked.append(at)
            return original.search(text, at)

    monkeypatch.setattr(templates, "_WORD", Counting())
    for text in ("{{" * 5000, "{%" * 5000, "{#" * 5000, "{{ '" * 5000, "{% raw %}" * 5000):
        looked.clear()
        list(template_concerns(text, "t"))
        assert len(looked) <= 4 * len(text)


# --- any bytes


def test_any_prefix_of_any_kind_is_examined_without_an_exception() -> None:
    files = [*RECOGNISED.values(), model(), saved_model("Const"), evil()]
    for data in files:
        for cut in {*range(min(len(data), 40)), len(data) // 2, len(data) - 1}:
            for name in ("x", "x.json", "x.onnx", "saved_model.pb"):
                assert examined(data[: max(cut, 0)], name).verdict in {
                    "data",
                    "acts",
                    "unread",
                    "unknown",
                }


def test_a_deep_message_is_bounded() -> None:
    data = b""
    for _ in range(200):
        data = field(5, field(6, field(1, data)))
    found = examined(b"\x08\x08" + field(7, field(1, data)), "m.onnx")
    assert found.verdict == "unread"


def test_a_file_of_zero_bytes_is_of_no_kind() -> None:
    assert recognize(bytes(64), 64) is None
    assert recognize(struct.pack("<Q", 2) + b"{}", 10) is KINDS["safetensors"]


def test_the_documented_table_is_that_of_the_code() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "kinds_table.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("config.json", b'{"a": 1,\n oops}', "it is not JSON: Expecting property name enclosed"),
        ("config.json", b'{"a": 1,\n oops}', "(line 2, column 2)"),
        ("config.json", b'{"a": "\xff"}', "it is not JSON: its text is not UTF-8"),
        ("log.jsonl", b'{"a": 1}\n{"b": }', "it is not JSON: Expecting value"),
        ("config.json", b"[" * 100_000, "nested too deeply"),
        ("config.json", b"1" * 10_000, "a number with too many digits"),
    ],
)
def test_settings_that_are_not_json_say_why(name: str, data: bytes, message: str) -> None:
    (concern,) = examine(BytesSource(data), name).concerns
    assert (concern.power, concern.rule) == ("unread", "json")
    assert message in concern.message
    assert "JSONDecodeError" not in concern.message
