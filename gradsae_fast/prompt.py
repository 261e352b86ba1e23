"""Scores of one prompt, without a store: for a notebook, or a first look."""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from gradsae_fast.config import CorpusConfig, ExtractConfig, ModelConfig, SaeConfig, ScoreConfig, StoreConfig
from gradsae_fast.corpus.bos import BosChoice, TokenRules, decide_bos
from gradsae_fast.corpus.read import open_corpus
from gradsae_fast.corpus.tokens import tokenize
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import CorpusError
from gradsae_fast.gate import median_norms
from gradsae_fast.method import SIGN, check_config, influence_unit, score_scale
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.model.objectives import Objective, ObjectiveFunction
from gradsae_fast.positions import position_masks
from gradsae_fast.prepare import load_sited_saes
from gradsae_fast.records import TokenDocument
from gradsae_fast.score import BatchScores, score_batch


def score_prompt(
    text: str,
    *,
    model: str | LanguageModel,
    sae: str | SaeConfig,
    answer: str | None = None,
    contrast: tuple[str, str] | None = None,
    score: ScoreConfig | None = None,
    bos: BosChoice = "auto",
    functions: Mapping[str, ObjectiveFunction] | None = None,
) -> pa.Table:
    """Score one prompt at one site; `model` may be one that is loaded already (`load_model`).

    Returns one row per active latent of each token, largest influence first: token position, token text, latent,
    activation, projection, influence, objective, and whether the token is masked in aggregates. Positive: the latent's
    presence raises the objective. `answer` is for the continuation objectives, `contrast` for `logit-diff`.
    """
    sae_config = sae if isinstance(sae, SaeConfig) else SaeConfig(path=sae)
    corpus = CorpusConfig(
        path="prompt",
        prompt_column=None if answer is None else "prompt",
        answer_column=None if answer is None else "answer",
        contrast_columns=None if contrast is None else ("first", "second"),
    )
    config = ExtractConfig(
        model=ModelConfig(path="prompt"),
        saes=(sae_config,),
        corpus=corpus,
        store=StoreConfig(path="prompt"),
        score=score or ScoreConfig(),
    )
    method = check_config(config, tuple(functions or {}))
    lm = load_model(ModelConfig(path=model)) if isinstance(model, str) else model
    sited = load_sited_saes(lm, config.saes)
    masked_ids = frozenset(config.score.mask_token_ids)
    rules, _ = decide_bos(lm.tokenizer, [sited[0].sae.facts.prepend_bos], bos, masked_ids=masked_ids)
    row = {"text": text, "prompt": text, "answer": answer}
    row |= {"first": contrast[0], "second": contrast[1]} if contrast else {}
    document = _tokenized(row, corpus, lm, rules)
    windows = cut_windows(document, 0, context_length=document.num_tokens + 1, overlap=0)
    batch = batch_windows(windows, tokens_per_batch=document.num_tokens)[0]
    ratio = config.score.sink_norm_ratio
    if ratio and (position_masks(batch) == 0).any():
        medians = median_norms(lm, sited, [batch])
        sited = tuple(one.with_sinks(ratio, medians) for one in sited)
    objectives = [Objective(name=name, function=(functions or {}).get(name)) for name in method.objectives]
    scores = score_batch(lm, sited, method, objectives, batch, nonfinite=config.score.nonfinite)
    return _table(document, scores, sited[0].site.path)


def _tokenized(
    row: Mapping[str, str | None], corpus: CorpusConfig, lm: LanguageModel, rules: TokenRules
) -> TokenDocument:
    """The prompt as tokens. CorpusError where it has none, or more than the model was built for."""
    documents = open_corpus(
        [row],
        prompt_column=corpus.prompt_column,
        answer_column=corpus.answer_column,
        contrast_columns=corpus.contrast_columns,
        metadata_columns=(),
    )
    document = next(tokenize(documents, lm.tokenizer, rules))
    if document.num_tokens < 1 + document.num_bos:
        raise CorpusError("the prompt has no token to score. Give some text.")
    if lm.max_context is not None and document.num_tokens > lm.max_context:
        raise CorpusError(
            f"the prompt has {document.num_tokens} tokens, but {lm.source!r} was built for at most {lm.max_context}. "
            "Shorten it, or extract it as a corpus, in windows."
        )
    return document


def _table(document: TokenDocument, scores: BatchScores, site: str) -> pa.Table:
    sparse = scores.sites[site]
    token_Z = np.repeat(np.arange(document.num_tokens), np.diff(sparse.indptr))
    text = document.document.full_text
    tokens = [text[start:stop] for start, stop in zip(document.char_start, document.char_end, strict=True)]
    parts = []
    facts = {"site": site, "sign": SIGN}
    for name, projection in sparse.projections.items():
        value_B = scores.values[site][name]
        scale = score_scale(name, value_B)[0]
        facts[f"unit of {name}"] = json.dumps(influence_unit(name))
        facts[f"value of {name}"] = repr(float(scale if name == "continuation-prob" else value_B[0]))
        parts.append(
            pa.table(
                {
                    "position": token_Z.astype(np.int32),
                    "token": pa.array([tokens[position] for position in token_Z], pa.string()),
                    "latent": sparse.indices.astype(np.int32),
                    "activation": sparse.activation,
                    "projection": (projection * scale).astype(np.float32),
                    "influence": (sparse.activation * projection * scale).astype(np.float32),
                    "objective": pa.array([name] * len(token_Z), pa.string()),
                    "masked": scores.mask_N[token_Z] != 0,
                }
            )
        )
    return pa.concat_tables(parts).sort_by([("influence", "descending")]).replace_schema_metadata(facts)
