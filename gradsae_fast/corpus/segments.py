"""The segments of a plan, filled with tokens: the corpus is read once, only the wanted segments are tokenised."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.read import Corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import CorpusPlan, Segment, TokenDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    documents = iter(corpus)
    for segment in plan.segments:
        run = list(islice(documents, segment.num_documents))
        if len(run) != segment.num_documents:
            found = segment.first_document + len(run)
            raise CorpusError(f"{_CHANGED}: got {found} documents, expected {plan.num_documents}; {_REMEDY}")
        if segment.index in skip:
            continue
        tokens = list(tokenize(run, tokenizer, rules, segment.first_document))
        found = sum(document.num_tokens for document in tokens)
        if found != segment.num_tokens:
            raise CorpusError(
                f"{_CHANGED}: got {found} tokens in segment {segment.index} (from document {run[0].key!r} on), "
                f"expected {segment.num_tokens}; {_REMEDY}"
            )
        yield segment, tokens
    if next(documents, None) is not None:
        raise CorpusError(f"{_CHANGED}: got more documents than the {plan.num_documents} of the plan; {_REMEDY}")


_CHANGED = "the corpus changed since it was planned"
_REMEDY = "restore it, or plan again into a new store"
