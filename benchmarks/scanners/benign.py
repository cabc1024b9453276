"""Harmless files as the libraries write them: `python benign.py FOLDER`, in an environment of its own.

Each function is a family: it writes files into a folder of its name. What a family holds is what people
share, made small. A library that is not installed leaves its family out, and the run says so.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pickle
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 7


def torch_checkpoints(folder: Path) -> None:
    """State dicts and training checkpoints of PyTorch."""
    import argparse

    import numpy as np
    import torch

    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    adam = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(3, 4)).sum().backward()
    adam.step()
    steps = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 10)
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain.step()
    quantised = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    files = {
        "state_dict.pt": model.state_dict(),
        "pytorch_model.bin": {name: value.half() for name, value in model.state_dict().items()},
        "optimizer.pt": adam.state_dict(),
        "sgd.pt": plain.state_dict(),
        "scheduler.pt": steps.state_dict(),
        "rng_state.pth": {
            "python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(),
        },
        "checkpoint.ckpt": {
            "epoch": 3, "global_step": 100, "state_dict": model.state_dict(),
            "optimizer_states": [adam.state_dict()], "args": argparse.Namespace(lr=0.1),
            "loops": collections.OrderedDict(a=1), "best": np.float64(0.5),
        },
        "parameters.pt": list(model.parameters()),
        "bfloat16.pt": torch.ones(4, dtype=torch.bfloat16),
        "sparse.pt": torch.eye(3).to_sparse(),
        "quantised.pt": {"w": quantised},
        "size.pt": {"shape": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu")},
    }  # fmt: skip
    for name, value in files.items():
        torch.save(value, folder / name)
    torch.save(model.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)


def torch_modules(folder: Path) -> None:
    """Whole modules of torch.nn, which pickle to their classes."""
    import torch
    from torch import nn

    modules = {
        "linear.pt": nn.Linear(2, 3),
        "sequential.pt": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()),
        "lstm.pt": nn.LSTM(2, 3, 2),
        "transformer.pt": nn.TransformerEncoderLayer(4, 2, 8),
        "embedding.pt": nn.ModuleDict({"a": nn.Embedding(4, 2), "b": nn.LayerNorm(2)}),
    }
    for name, module in modules.items():
        torch.save(module, folder / name)


def torchscript(folder: Path) -> None:
    """Modules that are compiled: they hold code."""
    import torch

    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), folder / "traced.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), folder / "scripted.pt")


def numpy_arrays(folder: Path) -> None:
    """Arrays, archives of arrays, and random generators."""
    import numpy as np

    np.save(folder / "floats.npy", np.zeros(9, "f4"))
    np.save(folder / "record.npy", np.zeros(2, [("a", "f4"), ("b", "i2", (3,))]))
    np.save(folder / "objects.npy", np.array([{"a": 1}, [2]], object), allow_pickle=True)
    np.savez(folder / "arrays.npz", a=np.zeros(3), b=np.ones(2, "i8"))
    np.savez_compressed(folder / "small.npz", a=np.zeros(300))
    values = {
        "array.pkl": np.arange(9.0), "scalar.pkl": np.float32(3), "state.pkl": np.random.RandomState(1),
        "generator.pkl": np.random.default_rng(1), "masked.pkl": np.ma.masked_array([1, 2], [0, 1]),
    }  # fmt: skip
    for name, value in values.items():
        (folder / name).write_bytes(pickle.dumps(value))


def _fitted() -> dict[str, object]:
    import numpy as np
    from sklearn import (
        cluster,
        decomposition,
        ensemble,
        feature_extraction,
        linear_model,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )

    random_state = np.random.RandomState(SEED)
    x, y = random_state.rand(40, 3), np.arange(40) % 2
    models = {
        "logistic": linear_model.LogisticRegression(), "ridge": linear_model.Ridge(),
        "lasso": linear_model.Lasso(0.01), "sgd": linear_model.SGDClassifier(random_state=0),
        "svc": svm.SVC(), "tree": tree.DecisionTreeClassifier(random_state=0),
        "forest": ensemble.RandomForestClassifier(5, random_state=0),
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
        "knn": neighbors.KNeighborsClassifier(), "bayes": naive_bayes.GaussianNB(),
        "kmeans": cluster.KMeans(2, n_init=1), "pca": decomposition.PCA(2),
        "scaler": preprocessing.StandardScaler(), "encoder": preprocessing.OneHotEncoder(),
        "labels": preprocessing.LabelEncoder(), "mlp": neural_network.MLPClassifier((4,), max_iter=5),
        "pipeline": pipeline.make_pipeline(preprocessing.MinMaxScaler(), linear_model.LogisticRegression()),
    }  # fmt: skip
    fitted: dict[str, object] = {}
    for name, model in models.items():
        fitted[name] = model.fit(y) if name == "labels" else model.fit(x, y)
    words = feature_extraction.text.TfidfVectorizer().fit(["a model file", "a file"])
    return {**fitted, "tfidf": words}


def sklearn(folder: Path) -> None:
    """Fitted estimators of scikit-learn, by joblib and by pickle."""
    import joblib

    for index, (name, model) in enumerate(_fitted().items()):
        if index % 2:
            joblib.dump(model, folder / f"{name}.joblib", compress=3 * (index % 4 == 1))
        else:
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(model))


def joblib_arrays(folder: Path) -> None:
    """Arrays and dictionaries, as joblib dumps and compresses them."""
    import joblib
    import numpy as np

    value = {"a": np.arange(6.0).reshape(2, 3), "b": [np.ones(3, "i4"), "text"], "c": None}
    joblib.dump(value, folder / "plain.joblib")
    for method in ("zlib", "gzip", "bz2", "xz", "lzma"):
        joblib.dump(value, folder / f"{method}.joblib", compress=(method, 3))


def boosted_trees(folder: Path) -> None:
    """Models of XGBoost and LightGBM, in their own formats and pickled."""
    import lightgbm
    import numpy as np
    import xgboost

    x, y = np.random.RandomState(SEED).rand(60, 3), np.arange(60) % 2
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(x, y), 3)
    for name in ("model.json", "model.ubj"):
        booster.save_model(folder / name)
    (folder / "booster.pkl").write_bytes(pickle.dumps(booster))
    trees = lightgbm.train({"verbose": -1, "min_data_in_leaf": 2}, lightgbm.Dataset(x, y), 3)
    trees.save_model(folder / "model.txt")
    (folder / "lightgbm.pkl").write_bytes(pickle.dumps(trees))


def keras(folder: Path) -> None:
    """Models and weights of Keras 3."""
    from keras import Input, Model, Sequential, layers

    dense = Sequential([Input((4,)), layers.Dense(3, "relu"), layers.Dropout(0.1), layers.Dense(1)])
    image = Sequential([
        Input((8, 8, 1)), layers.Conv2D(2, 3, activation="relu"), layers.MaxPooling2D(),
        layers.BatchNormalization(), layers.Flatten(), layers.Dense(2, "softmax"),
    ])  # fmt: skip
    text = Sequential(
        [Input((5,)), layers.Embedding(9, 4), layers.Bidirectional(layers.LSTM(3)), layers.Dense(1)]
    )
    start = Input((6, 4))
    attended = layers.MultiHeadAttention(2, 2)(start, start)
    joined = layers.LayerNormalization()(layers.Add()([start, attended]))
    functional = Model(start, layers.GlobalAveragePooling1D()(joined))
    dense.compile("adam", "mse", metrics=["mae"])
    for name, model in (
        ("dense", dense),
        ("image", image),
        ("text", text),
        ("functional", functional),
    ):
        model.save(folder / f"{name}.keras")
    dense.save(folder / "dense.h5")
    image.save(folder / "image.h5")
    dense.save_weights(folder / "dense.weights.h5")
    functional.save_weights(folder / "functional.weights.h5")


def saved_models(folder: Path) -> None:
    """SavedModels and checkpoints of TensorFlow."""
    import tensorflow as tf
    from keras import Input, Sequential, layers

    class Scale(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, x: object) -> object:
            return x * self.factor

    module = Scale()
    tf.saved_model.save(module, folder / "module")
    models = {
        "dense": Sequential([Input((4,)), layers.Dense(3, "relu"), layers.Dense(1)]),
        "image": Sequential([Input((8, 8, 1)), layers.Conv2D(2, 3), layers.MaxPooling2D()]),
        "text": Sequential([Input((5,)), layers.Embedding(9, 4), layers.LSTM(3)]),
    }  # fmt: skip
    for name, model in models.items():
        model.export(folder / name, verbose=False)
    tf.train.Checkpoint(module=module).write(str(folder / "checkpoint" / "model.ckpt"))


def onnx(folder: Path) -> None:
    """Models that the package onnx carries, and one with data beside it."""
    import shutil

    import numpy as np
    import onnx as library
    from onnx import helper, numpy_helper

    data = Path(library.__file__).parent / "backend" / "test" / "data"
    for path in sorted((data / "light").glob("*.onnx")):
        shutil.copy(path, folder)
    for part in ("simple", "pytorch-operator", "pytorch-converted"):
        for path in sorted((data / part).glob("*/model.onnx"))[:4]:
            shutil.copy(path, folder / f"{path.parent.name}.onnx")
    weight = numpy_helper.from_array(np.zeros((40, 40), "f4"), "w")
    ends = [helper.make_tensor_value_info(name, 1, [40, 40]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    library.save_model(
        helper.make_model(graph), folder / "external.onnx", save_as_external_data=True,
        location="external.onnx_data", size_threshold=0,
    )  # fmt: skip


def gguf(folder: Path) -> None:
    """GGUF files as its own package writes them."""
    import gguf as library
    import numpy as np

    for name, template in (("model.gguf", None), ("chat.gguf", TEMPLATES["chatml"])):
        writer = library.GGUFWriter(folder / name, "llama")
        writer.add_block_count(1)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
        if template:
            writer.add_chat_template(template)
        writer.add_tensor("token_embd.weight", np.zeros((2, 4), "f4"))
        for part in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
            getattr(writer, f"write_{part}")()
        writer.close()


TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
              "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}"
              "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != "
              "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
              "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endfor %}",
    "tools": "{%- set ns = namespace(found=false) -%}{%- for tool in tools -%}{%- set ns.found = true -%}"
             "{{ tool.function | tojson(indent=2) }}{%- endfor -%}{%- if ns.found -%}{{ '\n' }}"
             "{%- endif -%}"
             "{{ strftime_now('%d %b %Y') if strftime_now is defined else '' }}",
    "macro": "{% macro line(role, text) %}{{ role ~ ': ' ~ (text | trim) }}{% endmacro %}"
             "{% for m in messages if m.role in ['user', 'assistant'] %}{{ line(m.role, m.content) }}"
             "{% endfor %}",
}  # fmt: skip


def templates(folder: Path) -> None:
    """Chat templates in the styles of known tokenizers, alone and in tokenizer_config.json."""
    for name, text in TEMPLATES.items():
        (folder / f"{name}.jinja").write_text(text)
    (folder / "one").mkdir()
    config = {"chat_template": TEMPLATES["chatml"], "tokenizer_class": "LlamaTokenizer"}
    (folder / "one" / "tokenizer_config.json").write_text(json.dumps(config))
    several = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))


class Colour(enum.Enum):
    """An enumeration of the user's own."""

    RED = 1


@dataclasses.dataclass
class Settings:
    """A class of the user's own."""

    rate: float
    layers: tuple[int, ...]


def own_classes(folder: Path) -> None:
    """Objects of classes that only the program knows that wrote them."""
    for protocol in (2, 4):
        (folder / f"settings{protocol}.pkl").write_bytes(
            pickle.dumps(Settings(0.1, (1, 2)), protocol)
        )
    (folder / "enum.pkl").write_bytes(pickle.dumps({"c": Colour.RED}))


def plain_pickles(folder: Path) -> None:
    """Python's own types."""
    import datetime as dt
    import decimal
    import pathlib
    import uuid

    values = {
        "data": {"a": [1, 2.5, None], "b": ("x", b"y"), "c": {1, 2}, "d": frozenset({3})},
        "types": [
            dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
            decimal.Decimal("1.5"), pathlib.PurePosixPath("a/b"),
            uuid.UUID(int=1), collections.Counter("aab"), range(3), slice(1), complex(1, 2),
            collections.deque([1], 3), collections.defaultdict(list, a=[1]), bytearray(b"x"),
        ],
    }  # fmt: skip
    for name, value in values.items():
        for protocol in (0, 2, 5):
            if (name, protocol) != ("data", 0):
                (folder / f"{name}{protocol}.pkl").write_bytes(pickle.dumps(value, protocol))


def tables(folder: Path) -> None:
    """Data frames and HDF5 files of pandas, PyTables and h5py."""
    import h5py
    import numpy as np
    import pandas as pd
    import tables as pytables

    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    frame.to_pickle(folder / "frame.pkl")
    frame.to_hdf(folder / "fixed.h5", key="frame")
    with pytables.open_file(str(folder / "arrays.h5"), "w") as file:
        file.create_array("/", "a", np.zeros(3))
        file.root.a.attrs.note = "text"
    with h5py.File(folder / "plain.h5", "w") as file:
        file["a/b"] = np.zeros((2, 3), "f4")
        file["a"].attrs["note"] = "text"


def safetensors(folder: Path) -> None:
    """Files of the reference."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, "f4")}, folder / "model.safetensors", {"format": "pt"})
    save_file({}, folder / "empty.safetensors")


FAMILIES: list[Callable[[Path], None]] = [
    torch_checkpoints, torch_modules, torchscript, numpy_arrays, joblib_arrays, plain_pickles, own_classes,
    sklearn, boosted_trees, keras, saved_models, onnx, gguf, templates, tables, safetensors,
]  # fmt: skip


def main() -> int:
    """Write every family below the folder that is named."""
    root = Path(sys.argv[1])
    missing = []
    for build in FAMILIES:
        folder = root / build.__name__
        folder.mkdir(parents=True, exist_ok=True)
        try:
            build(folder)
        except ImportError as error:
            missing.append(f"{build.__name__}: {error}")
    print("\n".join(missing) or "all families written", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
