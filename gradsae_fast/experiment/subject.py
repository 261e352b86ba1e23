"""What is experimented on: a model, an SAE at its site, a method, and the settings of the experiment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradsae_fast.config import ModelConfig, SaeConfig, ScoreConfig
from gradsae_fast.corpus.bos import BosChoice, TokenRules, decide_bos
from gradsae_fast.corpus.tokens import special_ids, tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import ConfigError, CorpusError
from gradsae_fast.experiment.generate import Decoding, Prompt
from gradsae_fast.experiment.questions import DEFAULT_TEMPLATE, Question
from gradsae_fast.experiment.selection import PAPER_SIZES, SetSize
from gradsae_fast.gate import median_norms
from gradsae_fast.method import ANSWER_OBJECTIVES, Method, resolve_method
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.records import Array, Batch, Document, TokenDocument, Window
from gradsae_fast.score import SitedSae

Ranking = Literal["influence", "activation"]
RANKINGS: tuple[Ranking, ...] = ("activation", "influence")


PAPER = ScoreConfig(preset="paper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What an experiment is asked to do."""

    model: ModelConfig
    sae: SaeConfig
    questions: str
    score: ScoreConfig = PAPER
    rankings: tuple[Ranking, ...] = RANKINGS
    sizes: tuple[SetSize, ...] = PAPER_SIZES
    template: str = DEFAULT_TEMPLATE
    stop: tuple[str, ...] = ("\n",)  # an answer ends before the first token that contains one, or at the end of text
    limit: int | None = None  # questions tried, drawn at random
    seed: int = 42
    bos: BosChoice = "auto"
    max_new_tokens: int = 16
    prompts_per_batch: int = 16
    max_density: float = 1.0  # latents that fire on a larger share of prompt tokens are no candidates


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A setting with everything that it names loaded."""

    setting: Setting
    lm: LanguageModel
    sited: SitedSae
    method: Method
    rules: TokenRules
    bos_decision: str
    decoding: Decoding

    @property
    def objective(self) -> str:
        return self.method.objectives[0]

    def tokenise(self, questions: Sequence[Question]) -> list[TokenDocument]:
        """Prompts as tokens. CorpusError for a prompt without any."""
        documents = [
            Document(key=question.key, text=question.prompt, source="", row=row, metadata={})
            for row, question in enumerate(questions)
        ]
        found = list(tokenize(documents, self.lm.tokenizer, self.rules))
        for document in found:
            if document.num_tokens < 1 + document.num_bos:
                raise CorpusError(f"question {document.document.key!r} has no token. Give some text.")
        return found

    def prompt(self, document: TokenDocument) -> Prompt:
        """What is generated from."""
        window = whole_window(document)
        return Prompt(token_ids=window.token_ids.astype(np.int64), mask=position_masks(_alone(window)))


def load_subject(setting: Setting) -> Subject:
    """Load model and SAE. ConfigError for settings that contradict each other, and the errors of loading."""
    method = resolve_method(setting.score)
    _check_setting(setting, method)
    lm = load_model(setting.model)
    (sited,) = load_sited_saes(lm, [setting.sae])
    if sited.wiring.is_transcoder:
        raise ConfigError(
            f"{setting.sae.path!r} is a transcoder (it reads {sited.wiring.reads.path} and writes {sited.site.path}); "
            "the experiments edit what an SAE reads. Expected an SAE of one site."
        )
    if sited.sae.prediction is not None:
        raise ConfigError(
            f"{setting.sae.path!r} is a temporal SAE: what it encodes of a token depends on the tokens before, and the "
            "experiments generate with a cache, one token at a time. Expected an SAE that encodes each token by itself."
        )
    masked = frozenset(setting.score.mask_token_ids)
    rules, decision = decide_bos(lm.tokenizer, [sited.sae.facts.prepend_bos], setting.bos, masked_ids=masked)
    decoding = Decoding(
        stop_ids=_stop_ids(lm, setting.stop),
        max_new_tokens=setting.max_new_tokens,
        masked_ids=special_ids(lm.tokenizer) | masked,
        prompts_per_batch=setting.prompts_per_batch,
    )
    return Subject(
        setting=setting,
        lm=lm,
        sited=sited,
        method=method,
        rules=rules,
        bos_decision=decision,
        decoding=decoding,
    )


def with_sink_limit(subject: Subject, documents: Sequence[TokenDocument]) -> Subject:
    """The subject with attention sinks recognised by norm, where the method passes over them."""
    ratio = subject.setting.score.sink_norm_ratio
    if subject.method.splice == "all" or ratio == 0:
        return subject
    batches = batch_windows([whole_window(document) for document in documents], tokens_per_batch=2048)
    medians = median_norms(subject.lm, [subject.sited], batches)
    return replace(subject, sited=subject.sited.with_sinks(ratio, medians))


def with_answer(document: TokenDocument, answer_ids: Array) -> TokenDocument:
    """The document with the tokens of an answer behind it, as they were generated: text might be cut otherwise."""
    added = np.zeros(len(answer_ids), np.int32)
    return replace(
        document,
        token_ids=np.concatenate([document.token_ids, answer_ids.astype(np.int32)]),
        char_start=np.concatenate([document.char_start, added]),
        char_end=np.concatenate([document.char_end, added]),
        special=np.concatenate([document.special, added.astype(bool)]),
        answer_start=document.num_tokens,
    )


def whole_window(document: TokenDocument) -> Window:
    """The document as one window."""
    return cut_windows(document, 0, context_length=document.num_tokens + 1, overlap=0)[0]


def _alone(window: Window) -> Batch:
    return Batch(windows=(window,), token_ids_BT=window.token_ids[None].astype(np.int64))


def _stop_ids(lm: LanguageModel, stop: Sequence[str]) -> frozenset[int]:
    """Ids of the end of text, and of every token whose own text contains one of the strings."""
    generation: Any = getattr(lm.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    found = {index for index in (*ends, lm.tokenizer.eos_token_id) if index is not None}
    texts = lm.tokenizer.batch_decode([[index] for index in range(len(lm.tokenizer))]) if stop else []
    return frozenset(found | {index for index, text in enumerate(texts) if any(part in text for part in stop)})


def _check_setting(setting: Setting, method: Method) -> None:
    if len(method.objectives) != 1 or method.objectives[0] == "logit-diff":
        raise ConfigError(
            f"objectives are {list(method.objectives)}; expected one, and not logit-diff: "
            f"{', '.join(ANSWER_OBJECTIVES)}, top-token, entropy or next-token."
        )
    for name in ("rankings", "sizes"):
        values = getattr(setting, name)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} are {list(values)}; expected at least one, and each of them once.")
    if "" in setting.stop:
        raise ConfigError("a stop string is empty, which every token contains. Leave it out, or give a text.")
    for name in ("max_new_tokens", "prompts_per_batch"):
        if getattr(setting, name) < 1:
            raise ConfigError(f"{name} is {getattr(setting, name)}; expected at least 1.")
    if not 0 < setting.max_density <= 1:
        raise ConfigError(f"max_density is {setting.max_density}; expected a share above 0, and 1 for no limit.")
