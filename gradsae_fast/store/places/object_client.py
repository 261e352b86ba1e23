"""One bucket of S3-compatible object storage, through obstore: bytes by key, and errors that say what is known.

A request has three outcomes, which must not be confused: it was done; the object is not there, or is there already; or
nothing is known, since the storage did not answer or refused. The last is a `BucketError` and never a `StoreError`:
who looks for damage must not take a server that is down for an object that is lost.

Credentials are held by obstore's client alone, and appear in no text that is made here.
"""

import errno
import hashlib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from gradsae_fast.errors import BucketError, StoreError
from gradsae_fast.store.places.tails import Tail, Tails

_THREADS = 16
_TAIL_BYTES = 1 << 18
_GAP = 1 << 18  # bytes that are read in vain rather than asking twice
_MULTIPART_BYTES = 64 << 20  # a killed upload in parts leaves parts that are paid for and never seen
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN")
_SHORTEST_SECRET = 4
_KEY_ID = re.compile("<AWSAccessKeyId>[^<]*")
_INSTANCE = "169.254.169.254"  # who is asked for credentials where the environment has none
_NO_BUCKET = "<Code>NoSuchBucket</Code>"  # an answer to a listing, which obstore takes for no answer


class ObjectClient:
    """The objects of one bucket by their keys; made by `connection.connect`.

    Every method raises BucketError where the storage did not answer or refused.

    Args:
        url: the bucket, as errors name it.
        api: the package obstore.
        client: its client of the bucket, to be used until the first answer.
        patient: its client from then on.
    """

    def __init__(self, url: str, api: Any, client: Any, patient: Any) -> None:
        self.url = url
        self._api = api
        self._client = client
        self._patient = patient  # takes the client's place with the first answer
        self._tails = Tails(lambda key: self._fetch_tail(key, _TAIL_BYTES))

    def get(self, key: str, most: int | None = None) -> bytes:
        """Return an object's bytes, or its first `most` + 1 where it is longer, whose rest is not fetched.

        Raises:
            FileNotFoundError: there is none.
        """
        expected = self._tails.get(key)
        if expected and expected.is_whole:
            return expected.data
        with self._answered(key):
            found = self._api.get(self._client, key)
            if most is not None and int(found.meta["size"]) > most:
                return bytes(self._api.get_range(self._client, key, start=0, end=most + 1))
            return bytes(found.bytes())

    def get_pieces(self, key: str, size: int) -> Iterator[bytes]:
        """Yield an object's bytes in pieces of about `size`.

        Raises:
            FileNotFoundError: there is none.
        """
        expected = self._tails.get(key)
        if expected and expected.is_whole:
            yield expected.data
            return
        with self._answered(key):
            yield from map(bytes, self._api.get(self._client, key).stream(min_chunk_size=size))

    def get_many(self, keys: Sequence[str], most: int) -> Iterator[bytes]:
        """Yield what `get` returns of objects, in the order of their keys, fetching some at the same time.

        Raises:
            FileNotFoundError: one is not there.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(lambda key: self.get(key, most), keys)

    def expect(self, key: str) -> None:
        """Begin to fetch the end of an object that is never written anew, for who reads it next."""
        self._tails.expect(key)

    def get_tail(self, key: str, size: int) -> bytes:
        """Return the last `size` bytes of an object, or all of a shorter one that is not long either.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is empty, or shorter than a `size` of more than 256 KiB.
        """
        tail = self._tails.get(key)
        if tail is None or not (tail.is_whole or len(tail.data) >= size):
            tail = self._fetch_tail(key, size)
        return tail.data[-size:]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return ranges (offset, length) of an object; neighbours come in one request, others at the same time.

        Raises:
            FileNotFoundError: there is none.
            OSError: it ends before a range does.
        """
        tail = self._tails.get(key)
        parts = tail.cut(ranges) if tail else None
        if parts is not None:
            return parts
        spans = _spans(ranges)
        starts, ends = zip(*spans, strict=True)
        with self._answered(key, reaches_to=max(ends)):
            # obstore's own way to join neighbours panics where an object is shorter than was thought.
            found = self._api.get_ranges(self._client, key, starts=starts, ends=ends, coalesce=0)
        held = list(zip(spans, map(bytes, found), strict=True))
        return [
            next(data[offset - start : offset - start + length] for (start, end), data in held if start <= offset < end)
            for offset, length in ranges
        ]

    def put_many(self, folder: str, objects: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Write objects (key below `folder`, bytes), some at the same time, and yield each; at its end all are written.

        Raises:
            StoreError: the storage gave back other bytes.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            writing: deque[Future[None]] = deque()
            for key, data in objects:
                writing.append(pool.submit(self.put, f"{folder}/{key}", data))
                yield key, data
                if len(writing) == _THREADS:
                    writing.popleft().result()
            for written in writing:
                written.result()

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and check that the storage received these bytes: by its MD5, else by reading it back.

        Raises:
            StoreError: the storage gave back other bytes.
        """
        with self._answered(key, writing=True):
            multipart = len(data) > _MULTIPART_BYTES
            result = self._api.put(self._client, key, data, use_multipart=multipart, chunk_size=_MULTIPART_BYTES // 4)
        digest = _MD5.fullmatch(result["e_tag"] or "")
        if digest is None or digest[1] != hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._compare(key, data)  # no MD5 of a multipart upload, nor of one that is encrypted by a key of KMS

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet (`If-None-Match: *`), all of it or not at all.

        A response that is lost is settled by reading back: the same bytes are this very writer's, or as good as that.
        The client itself repeats a request without response, and then meets its own object.

        Raises:
            FileExistsError: there is one with other bytes.
            BucketError: also where the server does not know conditional writes.
        """
        try:
            self._api.put(self._client, key, data, mode="create", use_multipart=False)
        except self._api.exceptions.AlreadyExistsError as error:
            self._settle(key, data, error)
        except self._api.exceptions.BaseError as error:
            self._settle(key, data, error)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def length(self, key: str) -> int | None:
        """Return an object's length in bytes, or None where there is no such object."""
        try:
            with self._answered(key):
                return int(self._api.head(self._client, key)["size"])
        except FileNotFoundError:
            return None

    def lengths(self, prefix: str) -> dict[str, int]:
        """Return the length of every object below `prefix`, by whole key; a thousand of them cost one request."""
        with self._answered(prefix, listing=True):
            found = self._api.list(self._client, prefix or None, chunk_size=1000)
            # Some servers list a folder itself, as an object without a name, even when nothing is left in it.
            return {meta["path"]: int(meta["size"]) for batch in found for meta in batch if meta["path"] != prefix}

    def any_below(self, prefix: str) -> bool:
        """Return whether there is an object below `prefix`."""
        with self._answered(prefix, listing=True):
            found = self._api.list(self._client, prefix or None, chunk_size=1)
            return any(meta["path"] != prefix for batch in found for meta in batch)

    def entries(self, prefix: str) -> list[str]:
        """Return the keys right below `prefix`: objects, and prefixes that others have in common; sorted."""
        with self._answered(prefix, listing=True):
            found = self._api.list_with_delimiter(self._client, prefix or None)
            return sorted({*found["common_prefixes"], *(meta["path"] for meta in found["objects"])} - {prefix})

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are passed over."""
        if keys:
            try:
                with self._answered(keys[0]):
                    self._api.delete(self._client, list(keys))
            except FileNotFoundError:
                return

    def _fetch_tail(self, key: str, size: int) -> Tail:
        with self._answered(key, reaches_to=1):
            found = self._api.get(self._client, key, options={"range": {"suffix": size}})
            length = int(found.meta["size"])
            if length < size and size > _TAIL_BYTES:
                raise OSError(errno.EIO, f"it has {length} bytes, too few", f"{self.url}/{key}")
            return Tail(data=bytes(found.bytes()), length=length)

    def _settle(self, key: str, data: bytes, error: Exception) -> None:
        """Find out what became of a conditional write: by what is there now, and never by a guess."""
        try:
            there = self.get(key, len(data))
        except FileNotFoundError:
            raise self._unknown(key, error) from None
        if there != data:
            raise FileExistsError(errno.EEXIST, "there is such an object", f"{self.url}/{key}")

    def _compare(self, key: str, data: bytes) -> None:
        if self.get(key, len(data)) != data:
            raise StoreError(
                f"{self.url}/{key}: the object storage gave back other bytes than were written; check the server, then "
                "run the same command again"
            )

    @contextmanager
    def _answered(self, key: str, writing: bool = False, listing: bool = False, reaches_to: int = 0) -> Iterator[None]:
        """Say in the project's errors what a request came to; `reaches_to`: the end of what was asked for."""
        try:
            yield
            self._client = self._patient
        except FileNotFoundError as error:
            self._client = self._patient
            if writing or listing or _NO_BUCKET in str(error):
                raise self._no_bucket() from None
            raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{self.url}/{key}") from None
        except (self._api.exceptions.BaseError, ValueError) as error:
            length = self.length(key) if reaches_to else None
            if length is not None and length < reaches_to:
                raise OSError(errno.EIO, f"it has {length} bytes, too few", f"{self.url}/{key}") from None
            raise self._unknown(key, error) from None

    def _no_bucket(self) -> BucketError:
        return BucketError(f"{self.url}: there is no such bucket; create it, or check its name and AWS_ENDPOINT_URL")

    def _unknown(self, key: str, error: Exception) -> BucketError:
        if _NO_BUCKET in str(error):
            return self._no_bucket()
        names = (self._api.exceptions.PermissionDeniedError, self._api.exceptions.UnauthenticatedError)
        if isinstance(error, names):
            what = "the object storage refused"
            remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do in this bucket"
        elif _INSTANCE in str(error):
            what = "no credentials were found"
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
        else:
            what = "the object storage did not answer, or not as it should"
            remedy = "nothing is known of this object; check AWS_ENDPOINT_URL, AWS_REGION and the server"
        return BucketError(f"{self.url}/{key}: {what} ({_short(error)}); {remedy}, then run the same command again")


def _spans(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (start, end) of what to ask for: ranges (offset, length), those that lie close together as one."""
    spans: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if spans and offset <= spans[-1][1] + _GAP:
            spans[-1] = (spans[-1][0], max(spans[-1][1], offset + length))
        else:
            spans.append((offset, offset + length))
    return spans


def _short(error: Exception) -> str:
    """Return an error's text on one line, without what the environment holds as credentials."""
    text = " ".join(str(error).split("\n\nDebug source:")[0].split())
    for name in _SECRETS:
        if len(os.environ.get(name, "")) >= _SHORTEST_SECRET:
            text = text.replace(os.environ[name], f"<{name}>")
    return _KEY_ID.sub("<AWSAccessKeyId>", text)[:400]
