"""Which units a batch has, and what their results are called."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from safeweights.batching import Shard
from safeweights.batching.sources import _last, _matches, find_units
from safeweights.cli.batches import units_of
from safeweights.errors import UnsupportedError


def sources(*given: str, each: str = "model") -> list[str]:
    return [unit.source for unit in find_units(given, each=each, target=lambda *_: "")]


def targets(*given: str, command: str = "convert", each: str = "model") -> list[str | None]:
    return [unit.target for unit in units_of(command, given, to="out", each=each, shard=None)]


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestModels:
    def test_the_topmost_folder_with_weights_is_a_model(self) -> None:
        make("m/a/x.bin", "m/a/sub/y.bin", "m/b/c/z.safetensors", "m/README.md")
        assert sources("m") == ["m/a", "m/b/c"]

    def test_a_folder_that_is_a_model_is_one_unit(self) -> None:
        make("m/model.safetensors", "m/sub/other.safetensors")
        assert sources("m", "m/") == ["m"]

    @pytest.mark.parametrize("mark", ["model_index.json", "model.sig", ".metadata"])
    def test_marks_of_models_whose_weights_are_deeper(self, mark: str) -> None:
        make(f"m/pipe/{mark}", "m/pipe/unet/w.safetensors", "m/pipe/vae/w.safetensors")
        assert sources("m") == ["m/pipe"]

    def test_a_name_that_is_the_beginning_of_another_is_no_folder_above_it(self) -> None:
        make("m/a/w.pt", "m/ab/w.pt", "m/a-b/w.pt")
        assert sources("m") == ["m/a", "m/a-b", "m/ab"]

    def test_a_folder_without_models_is_left_to_the_command(self) -> None:
        make("m/README.md")
        assert sources("m") == ["m"]

    def test_what_does_not_exist_is_left_to_the_command(self) -> None:
        assert sources("nothing", "no/where.pt") == ["nothing", "no/where.pt"]

    def test_links_to_files_count_and_links_to_folders_do_not(self) -> None:
        make("blobs/abc", "elsewhere/w.pt")
        Path("m/a").mkdir(parents=True)
        os.symlink("../../blobs/abc", "m/a/model.safetensors")
        os.symlink("../elsewhere", "m/linked")
        assert sources("m") == ["m/a"]

    def test_each_file_of_weights(self) -> None:
        make("m/a/1.safetensors", "m/a/2.bin", "m/a/config.json", "m/3.gguf")
        assert sources("m", each="file") == ["m/3.gguf", "m/a/1.safetensors", "m/a/2.bin"]

    def test_a_unit_that_is_found_twice_counts_once(self) -> None:
        make("m/a/x.pt", "m/b/x.pt")
        assert sources("m/b", "m", "./m/a/") == ["m/b", "m/a"]

    def test_the_cost_is_that_of_all_files(self) -> None:
        make("m/a/x.pt", "m/a/s/y.pt", "m/b/x.pt")
        assert [unit.cost for unit in find_units(["m"], target=lambda *_: "")] == [20, 10]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_a_folder_that_cannot_be_read_is_left_to_the_command(self) -> None:
        make("m/a/x.pt")
        os.chmod("m", 0)
        assert sources("m") == ["m"]


class TestPatterns:
    def test_files_and_folders(self) -> None:
        make("m/a/x.pt", "m/b/y.pt", "m/c.pt", "m/d.txt")
        assert sources("m/*.pt", "m/?/") == ["m/c.pt", "m/a/", "m/b/"]

    def test_any_depth(self) -> None:
        make("m/a/x.pt", "m/b/c/y.pt")
        assert sources("m/**/*.pt") == ["m/a/x.pt", "m/b/c/y.pt"]

    def test_a_file_whose_name_looks_like_a_pattern(self) -> None:
        make("[1].pt", "1.pt")
        assert sources("[1].pt") == ["[1].pt"]

    def test_one_that_matches_nothing(self) -> None:
        with pytest.raises(FileNotFoundError, match="no file matches"):
            sources("*.pt")

    @pytest.mark.parametrize(
        ("pattern", "name", "matches"),
        [
            ("*/x.pt", "a/x.pt", True),
            ("*/x.pt", "a/b/x.pt", False),
            ("**/x.pt", "a/b/x.pt", True),
            ("**/x.pt", "x.pt", True),
            ("v[12]", "v2", True),
            ("v?", "v/", False),
        ],
    )
    def test_patterns_of_urls(self, pattern: str, name: str, matches: bool) -> None:
        assert _matches(name.split("/"), pattern.split("/")) is matches


class TestLists:
    def test_from_a_file(self) -> None:
        make("m/a/x.pt", "y.pt")
        Path("list").write_text("m\n\ny.pt\n")
        assert sources("@list") == ["m/a", "y.pt"]

    def test_from_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = io.TextIOWrapper(io.BytesIO(b"one.pt\ntwo.pt\tnamed\n"))
        monkeypatch.setattr(sys, "stdin", given)
        assert targets("-", command="pull") == ["out/one.pt", "out/named"]

    def test_names_that_are_not_unicode(self) -> None:
        Path("list").write_bytes(b"caf\xe9.pt\n")
        assert sources("@list") == ["caf\udce9.pt"]

    def test_a_missing_one(self) -> None:
        with pytest.raises(FileNotFoundError):
            sources("@list")


class TestNames:
    def test_below_the_folder_that_was_searched(self) -> None:
        make("m/a/x.pt", "m/b/c/y.pt")
        assert targets("m") == ["out/a/", "out/b/c/"]

    def test_of_files(self) -> None:
        make("m/a/pytorch_model.bin", "m/x.pt")
        wanted = ["out/a/model.safetensors", "out/x.safetensors"]
        assert targets("m", each="file") == wanted
        assert targets("m/x.pt", "m/a") == ["out/x.safetensors", "out/a/"]

    def test_below_the_part_of_a_pattern_without_wildcards(self) -> None:
        make("runs/1/last.pt", "runs/2/last.pt")
        assert targets("runs/*/last.pt") == ["out/1/last.safetensors", "out/2/last.safetensors"]

    def test_two_that_are_the_same_are_refused(self) -> None:
        make("runs/1/last.pt", "runs/2/last.pt")
        with pytest.raises(UnsupportedError, match=r"would both be `out/last\.safetensors`"):
            targets("runs/1/last.pt", "runs/2/last.pt")

    @pytest.mark.parametrize("name", ["../x", "/x", "a//b", ".."])
    def test_one_that_leads_out_is_refused(self, name: str) -> None:
        Path("list").write_text(f"a.pt\t{name}\n")
        with pytest.raises(UnsupportedError, match="would be called"):
            targets("@list")

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("hf://org/model@main", "org/model"),
            ("oci://registry.example.org:5000/team/model:v1", "team/model"),
            ("https://example.org/a/model/?sig=secret", "model"),
            ("s3://bucket/models/m.pt", "m.pt"),
        ],
    )
    def test_of_urls(self, url: str, name: str) -> None:
        assert _last(url) == name

    def test_warrants(self) -> None:
        make("m/a/x.pt")
        assert targets("m", command="admit") == ["out/a.warrant"]


class TestShards:
    def test_they_cover_everything_once(self) -> None:
        make(*(f"m/{number}/x.pt" for number in range(40)))
        parts = [
            {
                unit.source
                for unit in units_of("check", ["m"], to=None, each="model", shard=f"{i}/3")
            }
            for i in (1, 2, 3)
        ]
        assert all(parts)
        assert sorted(source for part in parts for source in part) == sorted(sources("m"))

    def test_one_does_not_depend_on_what_else_there_is(self) -> None:
        assert Shard(2, 3).has("s3://bucket/m0") is True
        assert Shard(1, 3).has("s3://bucket/m0") is False

    @pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3", "١/٢"])
    def test_a_shard_that_is_none(self, text: str) -> None:
        with pytest.raises(UnsupportedError, match="I/N"):
            Shard.parse(text)
