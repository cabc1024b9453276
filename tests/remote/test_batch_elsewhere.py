"""Batches whose sources and results are in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import servers

import safeweights
import safeweights.numpy
from safeweights.storage import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safeweights.batching import BatchReport

pytestmark = pytest.mark.servers
for package in ("obstore", "moto.server"):
    pytest.importorskip(package, reason=f"needs the package {package}")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with three models and a bad one."""
    import boto3

    monkeypatch.chdir(tmp_path)
    with servers.moto(tmp_path) as endpoint:
        for name, value in (
            ("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_REGION", "us-east-1"), ("AWS_SECRET_ACCESS_KEY", "SeCrEt"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        name = f"b{abs(hash(str(tmp_path))):x}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket=name)
        store = place_of(f"s3://{name}/models/").folder()
        for number, model in enumerate(("a", "b/c", "d")):
            data = safeweights.numpy.save({"w": np.full(8, number, "f4")})
            store.write(f"{model}/model.safetensors", [data])
        store.write("bad/model.safetensors", [b"not a header"])
        yield f"s3://{name}"


def statuses(report: BatchReport) -> list[tuple[str, str]]:
    return [(unit["source"].rpartition("models/")[2], unit["status"]) for unit in report.units]


def test_models_below_a_folder_and_a_pattern(bucket: str) -> None:
    report = safeweights.batch("check", f"{bucket}/models/", jobs=2)
    wanted = [("a/", "ok"), ("b/c/", "ok"), ("bad/", "bad"), ("d/", "ok")]
    assert statuses(report) == wanted
    report = safeweights.batch("hash", f"{bucket}/models/?/", jobs=1)
    assert statuses(report) == [("a/", "ok"), ("b/c/", "ok"), ("d/", "ok")]
    report = safeweights.batch("check", f"{bucket}/models/**/*.safetensors", jobs=1)
    assert len(report.units) == 4


def test_results_in_a_bucket_are_made_once(bucket: str) -> None:
    given = {"to": f"{bucket}/out/", "dtype": "BF16", "resume": "manifest", "jobs": 2}
    first = safeweights.batch("convert", f"{bucket}/models/", **given)
    assert [unit["status"] for unit in first.units] == ["ok", "ok", "bad", "ok"]
    assert safeweights.open(f"{bucket}/out/b/c/").info("w").dtype == "BF16"
    store = place_of(f"{bucket}/out/").folder()
    before = store.open("a/model.safetensors").version
    store.delete("d/model.safetensors")
    again = safeweights.batch("convert", f"{bucket}/models/", **given)
    assert again.document() == first.document()
    assert store.open("a/model.safetensors").version == before
    assert safeweights.open(f"{bucket}/out/d/").info("w").dtype == "BF16"
    assert "SeCrEt" not in Path("manifest").read_text()


def test_a_bucket_that_is_not_there_is_one_unit(bucket: str) -> None:
    report = safeweights.batch("check", [f"{bucket}none/models/", f"{bucket}/models/a/"], jobs=1)
    assert [unit["status"] for unit in report.units] == ["unreadable", "ok"]
