"""The plan: a corpus cut into segments, a pure function of the documents' token counts.

A segment holds whole documents and about 1/64 of the tokens, between 2^12 and 2^18, so that a crash costs minutes;
there are at least min(8, documents with tokens) of them, so that workers have something to share.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.digest import digest_of
from gradsae_fast.corpus.read import Corpus
from gradsae_fast.corpus.tokens import tokenize, tokenizer_digest
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import Array, CorpusPlan, Document, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEGMENTS = 64
MIN_TOKENS, MAX_TOKENS = 1 << 12, 1 << 18
MIN_SEGMENTS = 8


def make_plan(corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", rules: TokenRules) -> CorpusPlan:
    """Read and tokenise the corpus once and cut it; memory grows by 4 bytes and one 16-byte hash a document.

    Raises CorpusError for rows that cannot be used, keys that occur twice, and a corpus without a single token.
    """
    num_tokens = array("I")
    for document in tokenize(_unique(corpus), tokenizer, rules):
        num_tokens.append(document.num_tokens)
    segments = plan_segments(num_tokens)
    total = sum(segment.num_tokens for segment in segments)
    if total == 0:
        raise CorpusError(
            f"got {len(num_tokens)} documents without a single token, expected some text; check the text column"
        )
    digest = digest_of([corpus.manifest(), tokenizer_digest(tokenizer), rules.to_json(), _cuts(segments)])
    return CorpusPlan(digest=digest, num_documents=len(num_tokens), num_tokens=total, segments=segments)


def plan_segments(num_tokens_per_document: Sequence[int]) -> tuple[Segment, ...]:
    """Cut documents, given by their token counts, into runs of at most the target size.

    A document above the target is a segment of its own; documents without tokens stay with the segment before them
    (at the start: after them).
    """
    num_tokens = np.asarray(num_tokens_per_document, np.int64)
    if len(num_tokens) == 0:
        return ()
    ends = np.cumsum(num_tokens)
    target = min(max(int(ends[-1]) // SEGMENTS, MIN_TOKENS), MAX_TOKENS)
    wanted = min(MIN_SEGMENTS, int(np.count_nonzero(num_tokens)))
    stops = _stops(ends, target)
    while len(stops) < wanted:
        target //= 2
        stops = _stops(ends, target)
    firsts = [0, *stops[:-1]]
    return tuple(
        Segment(
            index=index, first_document=first, num_documents=stop - first, num_tokens=int(num_tokens[first:stop].sum())
        )
        for index, (first, stop) in enumerate(zip(firsts, stops, strict=True))
    )


def plan_key(manifest: Mapping[str, Any], tokenizer: str, rules: TokenRules) -> str:
    """Digest of everything that a plan is made from, known before a token is counted.

    manifest: `corpus.manifest()`; tokenizer: `tokenizer_digest(tokenizer)`.
    Equal keys mean equal plans: a plan that was kept under its key need not be made again.
    """
    return digest_of([manifest, tokenizer, rules.to_json(), [SEGMENTS, MIN_TOKENS, MAX_TOKENS, MIN_SEGMENTS]])


def plan_to_json(plan: CorpusPlan) -> dict[str, Any]:
    """The plan as JSON: a segment is [documents, tokens]; where it begins follows."""
    return {
        "digest": plan.digest,
        "num_documents": plan.num_documents,
        "num_tokens": plan.num_tokens,
        "segments": _cuts(plan.segments),
    }


def plan_from_json(value: Mapping[str, Any]) -> CorpusPlan:
    """The plan that `plan_to_json` wrote. CorpusError where its numbers do not add up."""
    segments = []
    first = 0
    for index, (num_documents, num_tokens) in enumerate(value["segments"]):
        segments.append(Segment(index=index, first_document=first, num_documents=num_documents, num_tokens=num_tokens))
        first += num_documents
    plan = CorpusPlan(
        digest=value["digest"],
        num_documents=value["num_documents"],
        num_tokens=value["num_tokens"],
        segments=tuple(segments),
    )
    total = sum(segment.num_tokens for segment in segments)
    if (first, total) != (plan.num_documents, plan.num_tokens):
        raise CorpusError(
            f"got a plan of {plan.num_documents} documents and {plan.num_tokens} tokens whose segments "
            f"hold {first} and {total}, expected equal numbers; the plan is damaged, make it again"
        )
    return plan


def _cuts(segments: Iterable[Segment]) -> list[list[int]]:
    return [[segment.num_documents, segment.num_tokens] for segment in segments]


def _stops(ends: Array, target: int) -> list[int]:
    """One past the last document of every segment; `ends` are the running sums of tokens."""
    stops: list[int] = []
    stop = done = 0
    while stop < len(ends):
        longest = int(np.searchsorted(ends, done, side="right"))  # first document with a token that is not yet placed
        limit = max(done + target, int(ends[min(longest, len(ends) - 1)]))
        stop = int(np.searchsorted(ends, limit, side="right"))
        done = int(ends[stop - 1])
        stops.append(stop)
    return stops


def _unique(corpus: Corpus) -> Iterator[Document]:
    """The documents, with a CorpusError at the second one of a key."""
    seen: set[bytes] = set()
    for document in corpus:
        digest = hashlib.blake2b(document.key.encode("utf-8"), digest_size=16).digest()
        if digest in seen:
            first = next(other for other in corpus if other.key == document.key)
            raise CorpusError(
                f"got the key {document.key!r} twice: {_place(first)} and {_place(document)}, expected unique keys; "
                "choose another id column, or repair the rows"
            )
        seen.add(digest)
        yield document


def _place(document: Document) -> str:
    return f"{document.source}, row {document.row} (counted from 0)"
