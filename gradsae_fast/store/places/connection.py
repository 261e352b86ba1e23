"""How a bucket is reached: its endpoint, its credentials, and how long to wait for an answer.

Endpoint and credentials come from the environment (`AWS_*`), credentials also from a profile or from the instance, as
obstore finds them. They are handed to its client and nowhere else.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from gradsae_fast.errors import StoreError
from gradsae_fast.store.places.object_client import ObjectClient

_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2}
_OFTEN = 1000  # the time is the limit: waits are drawn at random, and most are short
FIRST_RETRY: Mapping[str, Any] = {  # until the server has answered once: its address may be wrong
    "max_retries": _OFTEN,
    "retry_timeout": timedelta(seconds=10),
    "backoff": _BACKOFF,
}
RETRY: Mapping[str, Any] = {  # from then on: a server that is restarted costs waiting, not a run
    "max_retries": _OFTEN,
    "retry_timeout": timedelta(minutes=3),
    "backoff": _BACKOFF,
}
TIMEOUTS: Mapping[str, Any] = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=60),  # silence, not size: a large object may take its time
    "timeout": timedelta(minutes=10),
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_memories: dict[str, Any] = {}


def connect(scheme: str, bucket: str) -> ObjectClient:
    """Return the client of a bucket; nothing is asked of the server yet.

    Args:
        scheme: `s3`, or `memory` for one that ends with the process, which tests use.
        bucket: its name.

    Raises:
        StoreError: obstore is not installed, or the endpoint in the environment is not one to send data to.
    """
    url = f"{scheme}://{bucket}"
    api = obstore_for(url)
    if scheme == "memory":
        memory = _memories.setdefault(bucket, api.store.MemoryStore())
        return ObjectClient(url, api, memory, memory)
    options = {**TIMEOUTS, "allow_http": _may_be_plain(_endpoint())}
    credentials = _of_profile()
    first, patient = (
        api.store.S3Store(
            bucket,
            config={"checksum_algorithm": "sha256"},
            client_options=options,
            retry_config=retry,
            credential_provider=credentials,
        )
        for retry in (FIRST_RETRY, RETRY)
    )
    return ObjectClient(url, api, first, patient)


def obstore_for(url: str) -> ModuleType:
    """Return the package obstore, imported where an address needs it.

    Raises:
        StoreError: it is not installed.
    """
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise StoreError(
            f'{url} is object storage, which needs the package obstore: pip install "gradsae-fast[s3]"'
        ) from error
    return obstore


def _of_profile() -> Any:
    """Return what reads the credentials of AWS_PROFILE, or None where the environment has them, or names no profile.

    Raises:
        StoreError: boto3, which knows profiles, is not installed.
    """
    if not os.environ.get("AWS_PROFILE") or os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StoreError(
            "AWS_PROFILE is set, and profiles are read by boto3, which is not installed: pip install boto3, or put "
            "credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    return Boto3CredentialProvider()


def _endpoint() -> str:
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")


def _may_be_plain(endpoint: str) -> bool:
    """Whether plain http is meant: to this machine, or where AWS_ALLOW_HTTP says so.

    Raises:
        StoreError: an endpoint with credentials in it, or one over plain http on another machine.
    """
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise StoreError(
            "AWS_ENDPOINT_URL has a user name or password in it (not repeated here); expected https://host[:port]: put "
            "credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme != "http":
        return False
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    if parts.hostname not in _LOCAL and not allowed:
        raise StoreError(
            f"AWS_ENDPOINT_URL is plain http to {parts.hostname}, where anyone between reads the data; expected https, "
            "or AWS_ALLOW_HTTP=true where the network is your own"
        )
    return True
