"""The certificate of a store: how well its stored influences agree with exact ablation.

It is the sidecar `facts/certificate.json`: replaced atomically, covered by its checksum, never compared on resume. It
names the segments that it was measured on by their digests, so that a reader sees whether they are still those.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gradsae_fast.errors import FormatError
from gradsae_fast.store.places.durable import storage_errors
from gradsae_fast.store.places.place import Place
from gradsae_fast.store.reader import ScoreStore
from gradsae_fast.store.records.facts import facts_path, read_facts, write_facts

CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Stored influence (x) against exact ablation (y) over one class of samples; None where undefined."""

    site: str
    objective: str
    scores: str  # "pairs" of a token and a latent, or "documents": a latent in a whole document
    latents: str  # "all", "dense" or "sparse"
    samples: int
    pearson: float | None
    spearman: float | None
    sign_agreement: float | None  # share of samples with the same sign, those left out where both are exactly 0
    slope: float | None  # of the least-squares line of y on x, with intercept; 1 is calibrated
    slope_low: float | None  # 95 % bootstrap interval of the slope
    slope_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Agreements, and the evidence that they come from."""

    agreements: tuple[Agreement, ...]
    sampling: Mapping[str, Any]  # settings of the sample
    documents: tuple[str, ...]  # keys of the documents that samples were drawn from
    segments: Mapping[str, str]  # segment -> digest of the bytes that were certified
    differences: Mapping[str, tuple[Any, Any]]  # where this run computed otherwise: field -> (store, certificate)
    value_deviation: float  # largest |objective as stored - objective now| / max(1, |stored|)
    samples: Mapping[str, tuple[Any, ...]]  # columns, one entry a sample

    def is_current(self, store: ScoreStore) -> bool:
        """Whether the segments that were certified are still the store's, byte for byte."""
        digests = {str(segment.index): segment.digest for segment in store.segments}
        return all(digests.get(index) == digest for index, digest in self.segments.items())


def write_certificate(store: Place, certificate: Certificate) -> None:
    """Write or replace the certificate; for the holder of the writer's lock (`lock.locked`).

    Raises:
        StoreError: the disk is full or read-only.
    """
    with storage_errors(store):
        write_facts(store, CERTIFICATE, dataclasses.asdict(certificate))


def read_certificate(store: ScoreStore) -> Certificate | None:
    """Return the store's certificate, or None where it was never certified.

    Raises:
        StoreError: it is damaged.
        FormatError: it has other fields than this release knows.
    """
    facts = read_facts(store.path, CERTIFICATE)
    if facts is None:
        return None
    try:
        return Certificate(
            **facts
            | {
                "agreements": tuple(Agreement(**row) for row in facts["agreements"]),
                "documents": tuple(facts["documents"]),
                "differences": {name: (stored, now) for name, (stored, now) in facts["differences"].items()},
                "samples": {name: tuple(column) for name, column in facts["samples"].items()},
            }
        )
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"the certificate of {store.path} has other fields than this release knows ({error}): "
            "run `gradsae certify` again"
        ) from error


def forget_dropped(store: ScoreStore, dropped: Collection[str]) -> None:
    """Delete a certificate that speaks about documents with these keys; for the holder of the writer's lock.

    Raises:
        StoreError: it is damaged, or the disk is read-only.
    """
    certificate = read_certificate(store)
    if certificate is not None and set(dropped).intersection(certificate.documents):
        with storage_errors(store.path):
            facts_path(store.path, CERTIFICATE).unlink(missing_ok=True)


def follow_revision(before: ScoreStore, now: ScoreStore, owners: Mapping[int, int]) -> None:
    """Let the certificate speak about the segments that were put in the place of those it was measured on.

    One that was of other segments already is left as it is.

    Args:
        before: the store before its segments were replaced.
        now: the store after that.
        owners: by segment that was replaced, the one in its place.

    Raises:
        StoreError: it is damaged, or the disk is full or read-only.
    """
    certificate = read_certificate(now)
    if certificate is not None and certificate.is_current(before):
        digests = {segment.index: segment.digest for segment in now.segments}
        numbers = dict.fromkeys(owners.get(int(number), int(number)) for number in certificate.segments)
        write_certificate(
            now.path, dataclasses.replace(certificate, segments={str(number): digests[number] for number in numbers})
        )
