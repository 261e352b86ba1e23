"""The segments of a plan, filled with tokens: the corpus is read once, only the wanted segments are tokenised."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import Corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import CorpusPlan, Document, Segment, TokenDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SegmentReader:
    """Reads segments of a plan, again and again if need be.

    Segments that follow what was read last cost the documents in between, others a new look at the corpus from its
    beginning. CorpusError where the corpus is no longer the one that was planned: documents or tokens more or fewer.
    """

    def __init__(
        self, corpus: Corpus, plan: CorpusPlan, tokenizer: "PreTrainedTokenizerBase", rules: TokenRules
    ) -> None:
        self._corpus = corpus
        self._plan = plan
        self._tokenizer = tokenizer
        self._rules = rules
        self._documents = iter(corpus)
        self._next = 0  # the segment that the documents to come belong to

    def read(self, wanted: Iterable[int]) -> Iterator[tuple[Segment, list[TokenDocument]]]:
        """The segments of these numbers, in order, with their documents as tokens."""
        for index in sorted(wanted):
            if index < self._next:
                self._documents, self._next = iter(self._corpus), 0
            self.pass_over(index)
            segment = self._plan.segments[index]
            run = self._take(segment)
            tokens = list(tokenize(run, self._tokenizer, self._rules, segment.first_document))
            found = sum(document.num_tokens for document in tokens)
            if found != segment.num_tokens:
                raise CorpusError(
                    f"{_CHANGED}: got {found} tokens in segment {index} (from document {run[0].key!r} on), "
                    f"expected {segment.num_tokens}; {_REMEDY}"
                )
            yield segment, tokens

    def pass_over(self, stop: int) -> None:
        """Go on to segment `stop`, without tokenising those before it."""
        while self._next < stop:
            self._take(self._plan.segments[self._next])

    def expect_end(self) -> None:
        """Go on to the end of the plan, and check that it is the end of the corpus."""
        self.pass_over(len(self._plan.segments))
        if next(self._documents, None) is not None:
            raise CorpusError(
                f"{_CHANGED}: got more documents than the {self._plan.num_documents} of the plan; {_REMEDY}"
            )

    def _take(self, segment: Segment) -> list[Document]:
        run = list(islice(self._documents, segment.num_documents))
        if len(run) != segment.num_documents:
            found = segment.first_document + len(run)
            raise CorpusError(f"{_CHANGED}: got {found} documents, expected {self._plan.num_documents}; {_REMEDY}")
        self._next = segment.index + 1
        return run


def read_segments(
    corpus: Corpus,
    plan: CorpusPlan,
    tokenizer: "PreTrainedTokenizerBase",
    rules: TokenRules,
    skip: frozenset[int] = frozenset(),
) -> Iterator[tuple[Segment, list[TokenDocument]]]:
    """The segments of `plan` whose index is not in `skip`, in order, with their documents as tokens.

    Raises CorpusError where the corpus is no longer the one that was planned: documents or tokens more or fewer.
    """
    reader = SegmentReader(corpus, plan, tokenizer, rules)
    yield from reader.read(segment.index for segment in plan.segments if segment.index not in skip)
    reader.expect_end()


_CHANGED = "the corpus changed since it was planned"
_REMEDY = "restore it, or plan again into a new store"
