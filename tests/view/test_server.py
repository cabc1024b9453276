"""The server answers its own page and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from safeweights.view import server
from safeweights.view.viewing import Viewed

TOKEN = "t" * 43
PORT = 12345
OWN = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def ask(model):
    """Ask the application in this process; errors of its own are raised."""
    app = server.application(Viewed(model), TOKEN, PORT)

    def ask(path, *, token=TOKEN, method="GET", **headers):
        given = {"Authorization": f"Bearer {token}"} if token else {}

        async def send():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=OWN) as client:
                return await client.request(method, path, headers=given | headers)

        import anyio

        return anyio.run(send)

    return ask


DATA = [
    "model", "tensors", "map", "findings", "signature", "verdict", "difference", "state",
    "statistics?number=0", "picture?number=0", "values?number=0&rows=3&columns=3",
]  # fmt: skip


@pytest.mark.parametrize("path", DATA)
def test_data_needs_the_token(ask, path):
    found = ask(f"/data/{path}")
    assert found.status_code == 200
    json.loads(found.text)
    for token in (None, "", "x", TOKEN + "x", TOKEN[:-1]):
        refused = ask(f"/data/{path}", token=token)
        assert refused.status_code == 401
        assert "token" in refused.text
    assert ask(f"/data/{path}", token=None, Authorization="Basic x").status_code == 401


@pytest.mark.parametrize("path", ["/", "/view.js", "/view.css", "/uPlot.js", "/uPlot.css"])
def test_the_page_has_no_data_and_may_run_only_its_own_scripts(ask, path):
    found = ask(path, token=None)
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cross-origin-resource-policy"] == "same-origin"
    assert "SomeModel" not in found.text
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("path", ["/", "/data/model"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        f"127.0.0.1:{PORT + 1}",
        f"[::1]:{PORT}",
        "",
    ],
)
def test_another_host_is_refused(ask, path, host):
    """A name that an attacker's name server points at this machine."""
    assert ask(path, Host=host).status_code == 421
    assert ask(path, Host=f"localhost:{PORT}").status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"]
)
def test_a_page_of_another_site_is_refused(ask, origin):
    refused = ask("/data/model", Origin=origin)
    assert refused.status_code == 403
    assert ask("/data/model", Origin=OWN).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_only_reads(ask, method):
    assert ask("/data/model", method=method).status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/page/view.js",
        "/data/../x",
        "/data/file?path=/etc/passwd",
        "/%2e%2e/x",
    ],
)
def test_there_are_no_paths(ask, path):
    assert ask(path).status_code in {404, 405}


_NUMBERS = ["", "number=x", "number=-1", "number=" + "9" * 25, "number=99", "number=٣"]


@pytest.mark.parametrize(
    "request_",
    [
        *(f"{name}?{query}" for name in ("picture", "statistics", "values") for query in _NUMBERS),
        "picture?number=0&outer=a",
        "values?number=1&top=x",
    ],
)
def test_wrong_requests_are_answered(ask, request_):
    found = ask(f"/data/{request_}")
    assert found.status_code == 400
    assert found.json()["error"]


def test_two_hosts_or_two_tokens_are_refused(model):
    """What a proxy and a server could read differently."""
    import anyio

    app = server.application(Viewed(model), TOKEN, PORT)
    own = (b"host", f"127.0.0.1:{PORT}".encode())
    token = (b"authorization", f"Bearer {TOKEN}".encode())

    def status(*headers):
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {
            "type": "http", "method": "GET", "path": "/data/model", "raw_path": b"/data/model",
            "query_string": b"", "headers": list(headers), "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        anyio.run(app, scope, receive, send)
        return sent[0]["status"]

    assert status(own, token) == 200
    assert status(own, (b"host", b"evil"), token) == 421
    assert status(token) == 421
    assert status(own, token, (b"authorization", b"Bearer x")) == 401


@pytest.fixture
def command(model):
    """Start the command; its address, once it serves."""
    started = []

    def command(*options):
        process = subprocess.Popen(
            [sys.executable, "-m", "safeweights", "view", model, "--no-open", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield command
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="Windows sends no such signals")
def test_the_command_serves_until_ctrl_c(command):
    process = command()
    where, _, token = process.stdout.readline().strip().partition("#")
    assert where.startswith("http://127.0.0.1:")
    headers = {"Authorization": f"Bearer {token}"}
    found = httpx.get(f"{where}data/model", headers=headers, trust_env=False).json()
    assert found["document"]["model"]["architecture"] == "SomeModel"
    assert httpx.get(f"{where}data/model", trust_env=False).status_code == 401
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "")
    assert err == "safeweights: serving this machine only; Ctrl-C ends it\n"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such terminals and signals")
def test_a_closed_terminal_ends_it(model):
    """It is the terminal's process, not a daemon: nothing keeps serving the model."""
    import fcntl
    import pty
    import termios

    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "safeweights", "view", model, "--no-open"],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inner)
    shown = b""
    while b"Ctrl-C" not in shown:
        shown += os.read(outer, 4096)
    port = int(shown.partition(b"127.0.0.1:")[2].partition(b"/")[0])
    os.close(outer)
    process.wait(timeout=60)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_without_a_browser_the_address_is_enough(model):
    process = subprocess.Popen(
        [sys.executable, "-c", "import webbrowser, sys; webbrowser.open = lambda _: False\n"
         "sys.argv[0] = 'safeweights'; from safeweights.cli import main; main()", "view", model],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        where = process.stdout.readline()
        said = [process.stderr.readline() for _ in range(2)]
        address, _, token = where.strip().partition("#")
        headers = {"Authorization": f"Bearer {token}"}
        assert (
            httpx.get(f"{address}data/state", headers=headers, trust_env=False).status_code == 200
        )
    finally:
        process.kill()
        process.communicate()
    assert "open the address yourself" in said[0]
    assert "Ctrl-C" in said[1]


def test_a_port_in_use_is_said(command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = command("--port", str(taken.getsockname()[1]))
        out, err = process.communicate()
    assert (process.returncode, out) == (3, "")
    assert "in use" in err
    assert "Traceback" not in err


def test_it_listens_on_this_machine_alone():
    with server.listen() as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


def test_tokens_differ():
    assert len({server.new_token() for _ in range(100)}) == 100
    assert len(server.new_token()) >= 43
