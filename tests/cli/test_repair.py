"""`safeweights repair`."""

from __future__ import annotations

import os

from safeweights.checkpoint import open as open_checkpoint


def test_piped(run, tmp_path, write):
    path = str(tmp_path / "a.safetensors")
    write(path, [("a", "F32", (4,))], {"format": "pt"}, data=b"x" * 20)
    size = os.path.getsize(path)
    result = run("repair", path, "--plan")
    assert result.exit_code == 0
    assert result.rows == [["mended", path, "cut off 4 bytes after the end of the data"]]
    assert os.path.getsize(path) == size
    assert run("repair", path, "--json").document["mended"][0]["file"] == path
    assert os.path.getsize(path) == size - 4
    assert "a" in open_checkpoint(path)
    os.truncate(path, size - 10)
    result = run("repair", path)
    assert result.exit_code == 1
    assert result.rows[0][:4] == ["download", path, str(size - 10), str(size - 5)]
    assert run("repair", path, "--json").document["whole"] is False
    result = run("repair", f"{path}x")
    assert result.exit_code == 3


def test_on_a_terminal(terminal, plain, tmp_path, write):
    path = str(tmp_path / "a.safetensors")
    write(path, [("a", "F32", (4,))], data=b"x" * 10)
    (tmp_path / "b.safetensors").write_bytes(b"junk")
    write(str(tmp_path / "c.safetensors"), [("c", "F32", (4,))], data=b"x" * 20)
    shown, status = terminal("repair", str(tmp_path), "--plan", width=200)
    assert status == 1
    text = plain(shown)
    assert "download" in text
    assert "bytes=" in text
    assert "would mend" in text
    assert "left" in text
    assert "nothing was written" in text
    write(path, [("a", "F32", (4,))])
    assert "nothing to mend" in plain(terminal("repair", path)[0])
