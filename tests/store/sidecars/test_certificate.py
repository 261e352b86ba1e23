"""A certificate lies in the store without being in anyone's way."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsae_fast.errors import BusyError, FormatError
from gradsae_fast.store import ScoreWriter, open_scores, repair, verify
from gradsae_fast.store.places.lock import locked
from gradsae_fast.store.records.facts import facts_path, write_facts
from gradsae_fast.store.sidecars.certificate import (
    Agreement,
    Certificate,
    read_certificate,
    write_certificate,
)
from tests.store.synthetic import make_segment

OpenWriter = Callable[..., ScoreWriter]

ROW = Agreement(
    site="model.layers.1",
    objective="next-token",
    scores="pairs",
    latents="dense",
    samples=3,
    pearson=-0.25,
    spearman=None,
    sign_agreement=1 / 3,
    slope=0.1,
    slope_low=-1e-300,
    slope_high=2.0,
)


@pytest.fixture
def certificate(finished: Path) -> Certificate:
    return Certificate(
        agreements=(ROW,),
        sampling={"pairs": 3, "dense_share": 0.2},
        documents=("naïve\udce9",),
        segments={"1": open_scores(finished).segments[1].digest},
        differences={"model.device": ("cuda", "cpu")},
        value_deviation=1e-7,
        samples={"predicted": (0.1, 0.2, 0.3), "position": (4, None, 5)},
    )


def test_a_certificate_reads_back_as_it_was_written_and_a_later_one_replaces_it(
    finished: Path, certificate: Certificate
) -> None:
    assert read_certificate(open_scores(finished)) is None
    write_certificate(finished, certificate)
    assert read_certificate(open_scores(finished)) == certificate
    later = dataclasses.replace(certificate, value_deviation=0.5)
    write_certificate(finished, later)
    assert read_certificate(open_scores(finished)) == later


def test_equal_certificates_are_equal_bytes(finished: Path, certificate: Certificate) -> None:
    path = facts_path(finished, "certificate")
    write_certificate(finished, certificate)
    first = path.read_bytes()
    write_certificate(finished, dataclasses.replace(certificate))
    assert path.read_bytes() == first


def test_verify_repair_and_resume_leave_a_certificate_alone(
    finished: Path, certificate: Certificate, open_writer: OpenWriter
) -> None:
    write_certificate(finished, certificate)
    assert verify(finished) == []
    assert repair(finished) == []
    with open_writer() as writer:
        assert writer.committed == {0, 1}
    assert read_certificate(open_scores(finished)) == certificate


def test_a_damaged_certificate_is_found_and_repair_drops_it_alone(finished: Path, certificate: Certificate) -> None:
    write_certificate(finished, certificate)
    path = Path(str(facts_path(finished, "certificate")))
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.95"))
    assert [fault.object for fault in verify(finished, quick=True)] == ["facts/certificate.json"]
    assert repair(finished) == []
    store = open_scores(finished)
    assert read_certificate(store) is None
    assert store.is_complete
    assert store.facts("gate") == {"passed": True}
    assert verify(finished) == []


def test_a_certificate_is_current_until_a_certified_segment_changes(
    finished: Path, certificate: Certificate, open_writer: OpenWriter
) -> None:
    def drop_and_write(index: int, values_of: int) -> bool:
        (finished / "commits" / f"{index:06d}.json").unlink()
        assert certificate.is_current(open_scores(finished)) == (index != 1)
        with open_writer() as writer:
            writer.write(dataclasses.replace(make_segment(values_of), index=index))
        return certificate.is_current(open_scores(finished))

    assert drop_and_write(0, values_of=5)
    assert drop_and_write(1, values_of=1), "the same scores computed again"
    assert not drop_and_write(1, values_of=7)


def test_a_certificate_of_another_release_says_to_certify_again(finished: Path) -> None:
    write_facts(finished, "certificate", {"agreements": [], "colour": "red"})
    with pytest.raises(FormatError, match="run `gradsae certify` again"):
        read_certificate(open_scores(finished))


def test_while_one_holds_the_lock_no_other_writes(finished: Path, open_writer: OpenWriter) -> None:
    with locked(finished), pytest.raises(BusyError):
        open_writer()
    open_writer().close()
