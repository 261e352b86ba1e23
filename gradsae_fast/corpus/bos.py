"""Whether a BOS goes in front of what the model sees: the SAEs' training decides, and the decision is told.

An SAE reads hidden states of the inputs it was trained on; a BOS too many or too few changes all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradsae_fast.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BosChoice = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """How text becomes tokens. `bos_id` may be 0; `masked_ids` join the tokenizer's special tokens in the mask."""

    prepend_bos: bool
    bos_id: int | None
    masked_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.prepend_bos and self.bos_id is None:
            raise ConfigError(
                "got prepend_bos without a bos_id, expected the tokenizer's BOS id; give it or do not prepend"
            )

    def to_json(self) -> dict[str, object]:
        """The rules as JSON, for digests and records."""
        return {"prepend_bos": self.prepend_bos, "bos_id": self.bos_id, "masked_ids": sorted(self.masked_ids)}


def decide_bos(
    tokenizer: "PreTrainedTokenizerBase",
    sae_prepend_bos: Iterable[bool | None],
    choice: BosChoice,
    *,
    masked_ids: frozenset[int] = frozenset(),
) -> tuple[TokenRules, str]:
    """The rules for a tokenizer and SAEs, with the reason as a sentence to print.

    `sae_prepend_bos` holds what each SAE's metadata says of its training, None where it is silent. "auto" follows it;
    where all are silent it does what the tokenizer does by default.
    Raises CorpusError where SAEs disagree or the tokenizer has no BOS to prepend, ConfigError for another choice.
    """
    trained = {value for value in sae_prepend_bos if value is not None}
    if choice == "auto":
        prepend, why = _follow(tokenizer, trained)
    elif choice in ("always", "never"):
        prepend = choice == "always"
        against = ", against the SAE's metadata" if (not prepend) in trained else ""
        why = f"the setting is {choice!r}{against}"
    else:
        raise ConfigError(f"got the BOS choice {choice!r}, expected 'auto', 'always' or 'never'")
    bos_id = tokenizer.bos_token_id
    if not prepend:
        return TokenRules(prepend_bos=False, bos_id=bos_id, masked_ids=masked_ids), f"no BOS is put in front: {why}"
    if bos_id is None:
        raise CorpusError(
            f"a BOS is wanted ({why}), but the tokenizer has no bos_token; set tokenizer.bos_token, or choose 'never'"
        )
    rules = TokenRules(prepend_bos=True, bos_id=bos_id, masked_ids=masked_ids)
    return rules, f"BOS {tokenizer.bos_token!r} (id {bos_id}) is put in front of every window: {why}"


def _follow(tokenizer: "PreTrainedTokenizerBase", trained: set[bool]) -> tuple[bool, str]:
    if len(trained) > 1:
        raise CorpusError(
            "got SAEs trained with and without BOS, expected agreement: one run has one input; "
            "run them one after the other, or choose 'always' or 'never' for all"
        )
    if trained:
        prepend = next(iter(trained))
        return prepend, f"the SAE was trained {'with' if prepend else 'without'} it, says its metadata"
    adds = _adds_bos(tokenizer)
    return adds, f"the SAE's metadata is silent, and the tokenizer {'adds one' if adds else 'adds none'} by default"


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    if tokenizer.bos_token_id is None:
        return False
    return list(tokenizer("a", verbose=False)["input_ids"][:1]) == [tokenizer.bos_token_id]
