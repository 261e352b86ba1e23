"""Documents become token ids with character offsets, by a fast tokenizer, a batch of documents at a time.

Every text is tokenised without the tokenizer's own special tokens; the BOS is put in front here, exactly once. Prompt
and answer are tokenised apart and joined, so that the prompt's tokens do not depend on the answer.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradsae_fast.corpus.bos import TokenRules
from gradsae_fast.corpus.digest import canonical_json
from gradsae_fast.errors import CorpusError
from gradsae_fast.records import Array, Document, TokenDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pieces:
    """Tokens of one text: ids [T] and offsets [T, 2] (start, end)."""

    ids: Array
    offsets: Array


def tokenize(
    documents: Iterable[Document], tokenizer: "PreTrainedTokenizerBase", rules: TokenRules, first_index: int = 0
) -> Iterator[TokenDocument]:
    """The documents as tokens, in their order; the first one has the index `first_index` in the corpus.

    A text without tokens gives a document of length 0, without BOS. A text that spells out the BOS itself keeps that
    one. Offsets point into `document.full_text`; tokens that share a multi-byte character share its offsets.
    Raises CorpusError for a tokenizer without offsets and for answers or contrasts that have no usable tokens.
    """
    _require_fast(tokenizer)
    masked = np.array(sorted(special_ids(tokenizer) | rules.masked_ids), np.int32)
    index = first_index
    for batch in _batches(documents):
        prompts = _encode(tokenizer, [document.text for document in batch])
        answers = _encode(tokenizer, [document.answer or "" for document in batch])
        contrasts = _contrast_ids(tokenizer, batch)
        patches = _encode(tokenizer, [document.patch or "" for document in batch])
        for document, prompt, answer, contrast, patch in zip(batch, prompts, answers, contrasts, patches, strict=True):
            found = _assemble(document, index, prompt, answer, contrast, rules, masked)
            yield found if document.patch is None else replace(found, patch_ids=_patch_ids(found, prompt, patch))
            index += 1


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of all special tokens: the named ones (BOS, EOS, …) and the added tokens that are marked special.

    Chat markers are often special without a name; they are attention sinks like the others.
    """
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of what a tokenizer does: its definition and its special ids. CorpusError for a slow tokenizer.

    Truncation and padding are left out: they are states of the last call, and no call here uses them.
    """
    _require_fast(tokenizer)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition.pop("truncation", None)
    definition.pop("padding", None)
    special = {"special": sorted(special_ids(tokenizer)), "bos": tokenizer.bos_token_id}
    return hashlib.sha256(canonical_json([definition, special])).hexdigest()


def _require_fast(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.is_fast:
        raise CorpusError(
            f"got the slow tokenizer {type(tokenizer).__name__}, which gives no character offsets, expected "
            "a fast one; load it with use_fast=True, or convert it to a tokenizer.json"
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents that are cheap per call and bounded in memory."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.full_text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[_Pieces]:
    """The tokens of each text. Long texts are what this project is for: no length warning, no truncation."""
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [
        _Pieces(ids=np.array(ids, np.int32), offsets=np.array(offsets, np.int32).reshape(-1, 2))
        for ids, offsets in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _contrast_ids(tokenizer: "PreTrainedTokenizerBase", batch: Sequence[Document]) -> list[tuple[int, int] | None]:
    """First token of each contrast text; None for documents without contrast."""
    texts = [text for document in batch for text in document.contrast or ()]
    pieces = iter(_encode(tokenizer, texts) if texts else [])
    result: list[tuple[int, int] | None] = []
    for document in batch:
        if document.contrast is None:
            result.append(None)
            continue
        first, second = (_first_id(document, text, next(pieces)) for text in document.contrast)
        if first == second:
            raise CorpusError(
                f"document {document.key!r}: got the contrast {document.contrast!r}, whose texts begin with the same "
                f"token {first}, expected different ones: the difference of their logits is always 0; change the row"
            )
        result.append((first, second))
    return result


def _first_id(document: Document, text: str, pieces: _Pieces) -> int:
    if len(pieces.ids) == 0:
        raise CorpusError(
            f"document {document.key!r}: got the contrast text {text!r}, which has no tokens, expected at least one; "
            "change the row"
        )
    return int(pieces.ids[0])


def _patch_ids(document: TokenDocument, prompt: _Pieces, patch: _Pieces) -> Array:
    """The document's tokens with those of the patch in place of the text's [T]; BOS and answer stay."""
    if len(patch.ids) != len(prompt.ids):
        raise CorpusError(
            f"document {document.document.key!r}: got a patch text of {len(patch.ids)} tokens, expected "
            f"{len(prompt.ids)} as in the text: they are compared token by token; change the row"
        )
    first = document.num_tokens if document.answer_start is None else document.answer_start
    patched = document.token_ids.copy()
    patched[first - len(patch.ids) : first] = patch.ids
    return patched


def _assemble(
    document: Document,
    index: int,
    prompt: _Pieces,
    answer: _Pieces,
    contrast_ids: tuple[int, int] | None,
    rules: TokenRules,
    masked: Array,
) -> TokenDocument:
    ids = np.concatenate([prompt.ids, answer.ids])
    offsets = np.concatenate([prompt.offsets, answer.offsets + np.int32(len(document.text))])
    with_bos = rules.prepend_bos and len(ids) > 0
    added = int(with_bos and ids[0] != rules.bos_id)
    if added:
        ids = np.concatenate([np.array([rules.bos_id], np.int32), ids])
        offsets = np.concatenate([np.zeros((1, 2), np.int32), offsets])
    special = np.isin(ids, masked)
    special[: int(with_bos)] = True
    if document.answer is not None and len(answer.ids) == 0:
        raise CorpusError(
            f"document {document.key!r}: got the answer {document.answer!r}, which has no tokens, expected at least "
            "one; change the row"
        )
    return TokenDocument(
        document=document,
        index=index,
        token_ids=ids,
        char_start=np.ascontiguousarray(offsets[:, 0]),
        char_end=np.ascontiguousarray(offsets[:, 1]),
        special=special,
        num_bos=int(with_bos),
        answer_start=None if document.answer is None else added + len(prompt.ids),
        contrast_ids=contrast_ids,
    )
