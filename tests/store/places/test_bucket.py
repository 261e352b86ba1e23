"""A store in a bucket lives like one on a disk: by conditional creation, and without locks, folders or temporaries."""

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import obstore
import pytest

from gradsae_fast.errors import BucketError, StoreError
from gradsae_fast.ranking import rank_latents, rank_tokens
from gradsae_fast.ranking.index import build_index
from gradsae_fast.store import ScoreStore, ScoreWriter, open_scores, repair, verify, writer
from gradsae_fast.store.arrays.encoding import Encoding
from gradsae_fast.store.arrays.stored import StoredArray, encode_array
from gradsae_fast.store.format.layout import TOKENS
from gradsae_fast.store.places import connection
from gradsae_fast.store.places.bucket import BucketPath
from gradsae_fast.store.places.durable import create_exclusive, move, probe_exclusive, remove_tree, replace_file
from gradsae_fast.store.places.links import read_pieces, read_plain
from gradsae_fast.store.places.place import Place, key_below, place_of
from gradsae_fast.store.sidecars.described import Described, publish_described, read_described
from tests.store.synthetic import IDENTITY, SITE, make_segment

NUM_SEGMENTS = 2
_names = count()


class Obstore:
    """obstore with a word in: `before` and `after` see each request as (function, key)."""

    exceptions, store = obstore.exceptions, obstore.store

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda function, key: None
        self.after: Callable[[str, str], None] = lambda function, key: None
        self.ignores_conditions = False
        self.looks_before_it_writes = False

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def request(client: Any, key: Any = None, *args: Any, **kwargs: Any) -> Any:
            name = key if isinstance(key, str) else ",".join(key or [])
            self.requests.append((function, name))
            self.before(function, name)
            if self.looks_before_it_writes and kwargs.get("mode") == "create":
                self._look(client, name)
            if self.ignores_conditions or self.looks_before_it_writes:
                kwargs.pop("mode", None)
            answer = getattr(obstore, function)(client, key, *args, **kwargs)
            self.after(function, name)
            return answer

        return request

    def _look(self, client: Any, key: str) -> None:
        """Check that there is no such object, some time before it is written."""
        try:
            obstore.head(client, key)
        except FileNotFoundError:
            time.sleep(0.05)
            return
        raise obstore.exceptions.AlreadyExistsError(key)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Obstore:
    """The obstore that all buckets of a test go through."""
    wrapped = Obstore()
    monkeypatch.setattr(connection, "obstore_for", lambda url: wrapped)
    return wrapped


@pytest.fixture
def bucket() -> BucketPath:
    """An empty bucket in memory, and a prefix in it."""
    found = place_of(f"memory://test-{next(_names)}/runs/speeches.gradsae")
    assert isinstance(found, BucketPath)
    return found


def reached_anew(bucket: BucketPath) -> BucketPath:
    """The same place through a client that is made now."""
    scheme, _, name = bucket.client.url.partition("://")
    return BucketPath.of(scheme, name, bucket.key)


def open_writer(where: Place | str, **settings: Any) -> ScoreWriter:
    return ScoreWriter.create_or_resume(
        where, **{"run": {}, "identity": IDENTITY, "num_segments": NUM_SEGMENTS, **settings}
    )


def write_all(where: Place | str, **settings: Any) -> None:
    with open_writer(where, **settings) as opened:
        opened.write_dictionary(["the", " of"], {SITE: np.arange(64, dtype=np.float32)})
        opened.write_facts("gate", {"passed": True})
        for index in sorted(set(range(NUM_SEGMENTS)) - opened.committed):
            opened.write(make_segment(index))


def digests(store: ScoreStore) -> dict[int, str]:
    return {segment.index: segment.digest for segment in store.segments}


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store on a disk."""
    path = tmp_path_factory.mktemp("disk") / "scores"
    write_all(path)
    return path


def test_a_store_in_a_bucket_says_what_the_same_store_on_a_disk_says(bucket: BucketPath, on_disk: Path) -> None:
    write_all(bucket)
    there, here = open_scores(str(bucket)), open_scores(on_disk)
    assert digests(there) == digests(here)
    assert there.is_complete
    assert there.facts("gate") == {"passed": True}
    assert there.token_strings() == ["the", " of"]
    build_index(bucket)
    build_index(on_disk)
    there, here = open_scores(bucket), open_scores(on_disk)
    assert there.index is not None
    for question in (rank_latents, lambda store, k: rank_tokens(store, latent=3, k=k)):
        assert question(there, k=5).equals(question(here, k=5))
    assert verify(bucket) == []


def test_a_store_in_a_bucket_is_told_from_another_run_and_from_strangers(bucket: BucketPath) -> None:
    write_all(bucket)
    with pytest.raises(StoreError, match=r"corpus +\"0a1b\" +\"ff\""):
        open_writer(bucket, identity={**IDENTITY, "corpus": "ff"})
    replace_file(bucket.parent / "other" / "notes.txt", b"mine")
    with pytest.raises(StoreError, match=r"not a store: it has notes\.txt"):
        open_writer(bucket.parent / "other")
    with pytest.raises(StoreError, match=r"memory://.*/nowhere does not exist"):
        open_scores(bucket.parent / "nowhere")


class Death(BaseException):
    """What a kill is to one process: nothing after it happens."""


def die_at(api: Obstore, step: int, when: str) -> None:
    """Let the process die before or after its n-th request, and everything after that fail."""
    seen = count()
    dead = threading.Event()

    def before(function: str, key: str) -> None:
        if when == "before" and next(seen) == step:
            dead.set()
        if dead.is_set():
            raise Death

    def after(function: str, key: str) -> None:
        if when == "after" and next(seen) == step:
            dead.set()
        if dead.is_set():
            raise Death

    api.before, api.after = before, after


def small_objects(segment: Any, encoding: Encoding) -> Iterator[tuple[str, bytes]]:
    """Stand in for the objects of a segment by one array: a protocol does not know what it carries."""
    for key, data in encode_array(np.arange(segment.index + 3), TOKENS[0], encoding.profile).items():
        yield f"a/b/{key}", data


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_request_and_resumed_is_what_an_uninterrupted_run_leaves(
    api: Obstore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(writer, "segment_objects", small_objects)
    whole = place_of(f"memory://whole-{when}/s")
    write_all(whole)
    expected = digests(open_scores(whole))
    for step in count():
        store = place_of(f"memory://{when}-{step}/s")
        die_at(api, step, when)
        try:
            write_all(store)
            break
        except Death:
            die_at(api, -1, when)
        seen = digests(open_scores(store)) if (store / "run.json").exists() else {}
        assert seen.items() <= expected.items(), f"step {step}"
        assert not seen or verify(store) == [], f"step {step}"
        write_all(store)
        assert digests(open_scores(store)) == expected, f"step {step}"
        assert verify(store) == []
    assert step > 40


def lost(error: type[Exception], *, landed: bool, function: str = "put", times: int = 1) -> tuple[Any, Any]:
    """Two words for `Obstore`: of the first `times` requests for a commit record the answer is an error."""
    left = [times]

    def say(word: str, key: str) -> None:
        if word == function and "/commits/" in key and left[0]:
            left[0] -= 1
            raise error("no answer")

    return ((lambda *_: None), say) if landed else (say, (lambda *_: None))


@pytest.mark.parametrize("error", [obstore.exceptions.GenericError, obstore.exceptions.AlreadyExistsError])
def test_a_commit_that_landed_counts_though_its_response_was_lost(
    bucket: BucketPath, api: Obstore, error: type[Exception]
) -> None:
    bucket = reached_anew(bucket)
    api.before, api.after = lost(error, landed=True)
    write_all(bucket)
    assert open_scores(bucket).is_complete


@pytest.mark.parametrize(
    ("function", "error", "ask"),
    [
        ("list", obstore.exceptions.GenericError, BucketPath.exists),
        ("list_with_delimiter", obstore.exceptions.GenericError, lambda bucket: list(bucket.glob("*"))),
        ("get", FileNotFoundError, BucketPath.read_bytes),
    ],
)
def test_where_the_bucket_is_missing_it_is_said_so(
    bucket: BucketPath, api: Obstore, function: str, error: type[Exception], ask: Callable[[BucketPath], object]
) -> None:
    bucket = reached_anew(bucket)

    def refuse(asked: str, key: str) -> None:
        if asked == function:
            raise error("404 Not Found: <Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist")

    api.before = refuse
    with pytest.raises(BucketError, match=r"memory://test-\d+: there is no such bucket; create it, or check its name"):
        ask(bucket)


def test_a_commit_of_which_nothing_is_known_is_an_error_and_no_guess(bucket: BucketPath, api: Obstore) -> None:
    bucket = reached_anew(bucket)
    api.before, api.after = lost(obstore.exceptions.GenericError, landed=False)
    with pytest.raises(BucketError, match=r"commits/000000\.json.*nothing is known.*run the same command again"):
        write_all(bucket)
    assert len(open_scores(bucket).segments) == 0
    api.before = api.after = lambda *_: None
    write_all(bucket)
    assert open_scores(bucket).is_complete


def test_two_writers_at_once_leave_one_store(bucket: BucketPath, on_disk: Path) -> None:
    errors: list[BaseException] = []

    def write() -> None:
        try:
            with open_writer(str(bucket), shared=True) as opened:
                for index in range(NUM_SEGMENTS):
                    opened.write(make_segment(index))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert digests(open_scores(bucket)) == digests(open_scores(on_disk))
    assert verify(bucket) == []


def test_a_record_is_created_once(bucket: BucketPath) -> None:
    create_exclusive(bucket / "record", b"first")
    create_exclusive(bucket / "record", b"first")
    with pytest.raises(FileExistsError, match="record"):
        create_exclusive(bucket / "record", b"second")
    assert (bucket / "record").read_bytes() == b"first"


def test_storage_that_ignores_conditions_is_refused(bucket: BucketPath, api: Obstore) -> None:
    api.ignores_conditions = True
    with pytest.raises(StoreError, match=r"created twice \(it ignores `If-None-Match: \*`\).*use storage with"):
        write_all(place_of(str(bucket)))
    assert list(bucket.iterdir()) == []


def test_storage_that_checks_before_it_writes_is_refused_where_writers_meet(bucket: BucketPath, api: Obstore) -> None:
    api.looks_before_it_writes = True
    with pytest.raises(StoreError, match="created twice"):
        probe_exclusive(place_of(str(bucket)))


def test_storage_that_gives_back_other_bytes_is_found_out(bucket: BucketPath, api: Obstore) -> None:
    def garble(function: str, key: str) -> None:
        if function == "put" and key.endswith("activation/c.0") and "/by_token/" in key:
            client = connection._memories[bucket.client.url.removeprefix("memory://")]
            obstore.put(client, key, b"other bytes")

    api.after = garble
    with pytest.raises(StoreError, match=r"by_token/activation/c\.0: .*gave back other bytes|has 11 bytes, committed"):
        write_all(place_of(str(bucket)))


def test_an_outage_is_never_taken_for_damage(bucket: BucketPath, api: Obstore) -> None:
    bucket = reached_anew(bucket)
    write_all(bucket)
    outages = 0
    actions: tuple[Callable[[BucketPath], list[Any]], ...] = (verify, repair)
    for action, step in product(actions, range(0, 200, 9)):
        seen = count()

        def fail(function: str, key: str, seen: Iterator[int] = seen, step: int = step) -> None:
            if next(seen) >= step:
                raise obstore.exceptions.GenericError("the server is away")

        api.before = fail
        with suppress(BucketError):
            outages += 1
            assert action(bucket) == []
            outages -= 1
        api.before = lambda *_: None
    assert outages > 10
    assert verify(bucket) == []
    assert open_scores(bucket).is_complete


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "flipped", "record"])
def test_damage_is_named_and_healed(bucket: BucketPath, on_disk: Path, damage: str) -> None:
    write_all(bucket)
    segment = open_scores(bucket).segments[1]
    place = segment.folder / "tokens/token_id/c.0"
    data = place.read_bytes()
    if damage == "missing":
        place.unlink()
    elif damage == "record":
        place = bucket / "commits" / "000001.json"
        replace_file(place, place.read_bytes().replace(b"0", b"1"))
    else:
        changed = {"short": data[:-9], "empty": b"", "flipped": bytes([data[0] ^ 4]) + data[1:]}[damage]
        replace_file(place, changed)
    found = verify(bucket)
    assert any(key_below(place, bucket) in str(fault) and fault.segment == 1 for fault in found), found
    if damage != "record":
        with pytest.raises(StoreError, match="segment 1"):
            open_scores(bucket).segments[1].tokens()
    assert repair(bucket) == [1]
    write_all(bucket)
    assert verify(bucket) == []
    assert digests(open_scores(bucket)) == digests(open_scores(on_disk))


def test_descriptions_are_replaced_in_a_bucket(bucket: BucketPath) -> None:
    write_all(bucket)
    ids_CT, effects_CT = np.arange(8, dtype=np.uint32).reshape(4, 2), np.zeros((4, 2), np.float32)
    for shift in range(2):
        tables = (ids_CT + shift, effects_CT, ids_CT, effects_CT, ids_CT % 4, effects_CT)
        names = Described.__dataclass_fields__
        publish_described(bucket, {SITE: Described(**dict(zip(names, tables, strict=True)))}, "compact")
        found = read_described(bucket, SITE)
        assert found is not None
        np.testing.assert_array_equal(found.promoted_CT, ids_CT + shift)
    assert len(list((bucket / "described").iterdir())) == 2
    assert verify(bucket) == []


def test_an_array_costs_three_requests_and_one_that_was_expected_none(bucket: BucketPath, api: Obstore) -> None:
    bucket = reached_anew(bucket)
    values = np.arange(300_000, dtype=np.uint32)
    for key, data in encode_array(values, TOKENS[0], "portable").items():
        replace_file(bucket / "array" / key, data)
    api.requests.clear()
    array = StoredArray(bucket / "array", "an array")
    np.testing.assert_array_equal(
        array.read_ranges([5, 200_000], [9, 300_000]), values[[*range(5, 9), *range(200_000, 300_000)]]
    )
    assert [function for function, _ in api.requests] == ["get", "get", "get_ranges"]
    array.read(250_000, 260_000)
    assert len(api.requests) == 4
    small = np.arange(1000, dtype=np.uint32)
    for key, data in encode_array(small, TOKENS[0], "portable").items():
        replace_file(bucket / "small" / key, data)
        bucket.client.expect((bucket / "small" / key).key)
    before = len(api.requests)
    np.testing.assert_array_equal(StoredArray(bucket / "small", "an array").read(), small)
    assert len(api.requests) - before <= 2


def test_opening_a_store_lists_and_does_not_ask_for_each_segment(bucket: BucketPath, api: Obstore) -> None:
    bucket = reached_anew(bucket)
    segments = 12
    with open_writer(bucket, num_segments=segments) as opened:
        for index in range(segments):
            opened.write(make_segment(index))
    api.requests.clear()
    assert len(open_scores(bucket, use_index=False).segments) == segments
    assert len(api.requests) <= segments + 10, api.requests


@pytest.mark.parametrize("key", ["a", "a/b.json", "runs/x.y/000001-ab", "a.b.c/.tmp-1"])
def test_a_place_in_a_bucket_has_the_parts_that_a_path_has(key: str) -> None:
    place, path = place_of(f"memory://parts/{key}"), PurePosixPath(key)
    assert isinstance(place, BucketPath)
    assert (place.name, place.stem, place.suffix) == (path.name, path.stem, path.suffix)
    assert (place.parent / "c" / "d").key == str(path.parent / "c" / "d")
    assert place.with_name("new").key == str(path.with_name("new"))
    assert (place / "e/f").relative_to(place) == PurePosixPath("e/f")
    assert place == place_of(f"memory://parts//{key}/")
    assert {place: 1}[place.parent / place.name] == 1
    assert str(place) == f"memory://parts/{key}"


def test_folders_of_a_bucket_are_what_lies_in_them(bucket: BucketPath) -> None:
    assert not bucket.exists()
    assert not bucket.is_dir()
    assert list(bucket.iterdir()) == []
    for key in ("b/c", "a.json", "b/d%2F%41"):
        replace_file(bucket / key, key.encode())
    replace_file(bucket.parent / "speeches.gradsae-other" / "x", b"not below")
    assert [path.name for path in bucket.iterdir()] == ["a.json", "b"]
    assert [path.name for path in bucket.glob("*.json")] == ["a.json"]
    assert (bucket / "b").is_dir()
    assert (bucket / "b").exists()
    assert not (bucket / "a.json").is_dir()
    assert bucket.lengths_below() == {"b/c": 3, "a.json": 6, "b/d%2F%41": 9}
    move(bucket / "a.json", bucket / "b" / "moved")
    assert (bucket / "b" / "moved").read_bytes() == b"a.json"
    assert not (bucket / "a.json").exists()
    (bucket / "b" / "moved").unlink()
    with pytest.raises(FileNotFoundError):
        (bucket / "b" / "moved").unlink()
    (bucket / "b" / "moved").unlink(missing_ok=True)
    remove_tree(bucket / "b")
    assert not bucket.exists()
    with pytest.raises(StoreError, match=r"has `\.\.` in it"):
        bucket / "../other"


HIDDEN = "hunter2/hunter2"


@pytest.mark.parametrize(
    "address",
    [
        f"s3://AKIA123:{HIDDEN}@bucket/prefix",
        f"s3://user@{HIDDEN}",
        f"s3://bucket/prefix?X-Amz-Signature={HIDDEN}",
        f"s3://bucket/prefix#{HIDDEN}",
        f"https://user:{HIDDEN}@s3.amazonaws.com/bucket",
        f"s3://{HIDDEN}!/prefix" if "!" in HIDDEN else "s3:///prefix",
    ],
)
def test_an_address_with_credentials_is_refused_without_repeating_them(address: str) -> None:
    with pytest.raises(StoreError, match=r"expected s3://bucket/prefix|not repeated") as caught:
        place_of(address)
    assert "hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_an_address_that_was_made_a_path_is_refused() -> None:
    with pytest.raises(StoreError, match="eats one of its slashes"):
        place_of(Path("s3://bucket/prefix"))
    assert place_of("a:/b") == Path("a:/b")
    assert place_of(Path("runs")) == Path("runs")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Credentials in the environment, and an endpoint where nothing listens."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    values = ("AKIAVERYPUBLIC", "verysecretvalue", "verysecrettoken")
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(connection, "FIRST_RETRY", {"max_retries": 0})
    return values


def test_credentials_of_the_environment_are_in_no_text(credentials: tuple[str, ...]) -> None:
    place = place_of("s3://bucket/prefix")
    assert isinstance(place, BucketPath)
    with pytest.raises(BucketError, match=r"s3://bucket/prefix.*did not answer") as caught:
        place.read_bytes()
    parts = [place, place.client, caught.value, caught.value.__cause__, caught.value.__context__, pickle.dumps(place)]
    for text in (*map(str, parts), *map(repr, parts)):
        assert not [value for value in credentials if value in text]
    again = pickle.loads(pickle.dumps(place))
    assert again == place


def test_an_error_that_repeats_credentials_is_shown_without_them(
    credentials: tuple[str, ...], bucket: BucketPath, api: Obstore
) -> None:
    def tell(function: str, key: str) -> None:
        raise obstore.exceptions.GenericError(f"<AWSAccessKeyId>{credentials[0]}</> {credentials[1]} {credentials[2]}")

    api.before = tell
    with pytest.raises(BucketError, match=r"<AWS_ACCESS_KEY_ID>.*<AWS_SESSION_TOKEN>") as caught:
        place_of(str(bucket)).read_bytes()
    assert not [value for value in credentials if value in str(caught.value)]


@pytest.mark.parametrize(
    ("endpoint", "match"),
    [("http://user:hunter2@127.0.0.1:9", "not repeated here"), ("http://storage.example", "plain http")],
)
def test_an_endpoint_that_would_give_things_away_is_refused(
    credentials: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, endpoint: str, match: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=match) as caught:
        place_of("s3://bucket/prefix")
    assert "hunter2" not in str(caught.value)


def test_of_an_object_that_is_longer_than_may_be_no_more_is_fetched(api: Obstore) -> None:
    place = place_of(f"memory://longer-{next(_names)}/object")
    assert isinstance(place, BucketPath)
    replace_file(place, b"x" * 3_000_000)
    fetched: list[int] = []
    ranged = obstore.get_range

    def get_range(client: Any, key: str, *, start: int, end: int) -> Any:
        fetched.append(end - start)
        return ranged(client, key, start=start, end=end)

    api.get_range = get_range  # type: ignore[attr-defined]
    assert read_plain(place, 1000) == b"x" * 1001
    assert fetched == [1001]
    assert read_plain(place, 3_000_000) == b"x" * 3_000_000
    with pytest.raises(OSError, match="3000000 bytes, too few"):
        place.read_tail(1 << 40)
    assert b"".join(read_pieces(place)) == b"x" * 3_000_000
    assert fetched == [1001]


def test_metadata_that_is_too_long_is_refused_in_a_bucket_too(bucket: BucketPath) -> None:
    for key, data in encode_array(np.arange(4, dtype=np.uint32), TOKENS[0], "compact").items():
        replace_file(bucket / key, data)
    replace_file(bucket / "zarr.json", b" " * (1 << 20))
    with pytest.raises(StoreError, match="it has more than 65536 bytes"):
        StoredArray(bucket, "an array")


def test_a_profile_without_boto3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match="pip install boto3"):
        place_of("s3://bucket/prefix")


def test_without_obstore_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r'pip install "gradsae-fast\[s3\]"'):
        open_scores("s3://bucket/prefix")


def test_a_store_on_a_disk_never_imports_obstore(on_disk: Path, tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from gradsae_fast.store import open_scores, verify; "
        f"open_scores({str(on_disk)!r}); verify({str(on_disk)!r}); assert 'obstore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
