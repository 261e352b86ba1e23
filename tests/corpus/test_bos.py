import pytest
from transformers import PreTrainedTokenizerFast

from gradsae_fast.corpus.bos import TokenRules, decide_bos
from gradsae_fast.errors import ConfigError, CorpusError

SaeSays = list[bool | None]


@pytest.mark.parametrize(
    ("sae", "choice", "prepend", "reason"),
    [
        ([True], "auto", True, "trained with it"),
        ([True, None, True], "auto", True, "trained with it"),
        ([False], "auto", False, "trained without it"),
        ([None], "auto", False, "adds none by default"),
        ([], "auto", False, "adds none by default"),
        ([False], "always", True, "'always', against the SAE's metadata"),
        ([True], "always", True, "'always'"),
        ([True], "never", False, "'never', against the SAE's metadata"),
        ([True, False], "never", False, "'never', against"),
    ],
)
def test_the_choice_then_the_sae_then_the_tokenizer_decide(
    tokenizer: PreTrainedTokenizerFast, sae: SaeSays, choice: str, prepend: bool, reason: str
) -> None:
    rules, why = decide_bos(tokenizer, sae, choice)  # type: ignore[arg-type]
    assert rules == TokenRules(prepend_bos=prepend, bos_id=0)
    assert reason in why
    assert ("'<bos>' (id 0)" in why) == prepend


def test_silent_saes_follow_a_tokenizer_that_adds_bos(tokenizer_adding_bos: PreTrainedTokenizerFast) -> None:
    rules, why = decide_bos(tokenizer_adding_bos, [None], "auto")
    assert rules.prepend_bos
    assert "adds one by default" in why


def test_saes_that_disagree_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match=r"with and without BOS.*choose 'always' or 'never'"):
        decide_bos(tokenizer, [True, None, False], "auto")


def test_a_bos_that_the_tokenizer_lacks_is_refused(tokenizer_without_bos: PreTrainedTokenizerFast) -> None:
    for sae, choice in (([True], "auto"), ([None], "always")):
        with pytest.raises(CorpusError, match=r"no bos_token; set tokenizer\.bos_token, or choose 'never'"):
            decide_bos(tokenizer_without_bos, sae, choice)  # type: ignore[arg-type]
    rules, _ = decide_bos(tokenizer_without_bos, [None], "auto")
    assert rules == TokenRules(prepend_bos=False, bos_id=None)


def test_settings_that_make_no_sense_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="expected 'auto', 'always' or 'never'"):
        decide_bos(tokenizer, [], "sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prepend_bos without a bos_id"):
        TokenRules(prepend_bos=True, bos_id=None)


def test_masked_ids_travel_with_the_rules(tokenizer: PreTrainedTokenizerFast) -> None:
    rules, _ = decide_bos(tokenizer, [], "auto", masked_ids=frozenset({9, 3}))
    assert rules.to_json() == {"prepend_bos": False, "bos_id": 0, "masked_ids": [3, 9]}
