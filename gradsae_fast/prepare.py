"""Everything that must be known before the first segment: model, SAEs at their sites, tokens, plan."""

import dataclasses
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from typing import Any

import torch

from gradsae_fast.assemble import SegmentBuilder
from gradsae_fast.config import CorpusConfig, ExtractConfig, SaeConfig
from gradsae_fast.corpus.bos import TokenRules, decide_bos
from gradsae_fast.corpus.plan import make_plan, plan_from_json, plan_key, plan_to_json
from gradsae_fast.corpus.read import Corpus, open_corpus
from gradsae_fast.corpus.tokens import tokenizer_digest
from gradsae_fast.corpus.windows import batch_windows, cut_windows
from gradsae_fast.errors import ConfigError, SaeError
from gradsae_fast.method import Method, check_config
from gradsae_fast.model.load import LanguageModel, load_model
from gradsae_fast.model.objectives import Objective, ObjectiveFunction, function_digest
from gradsae_fast.model.sites import Wiring
from gradsae_fast.overlap import Behind
from gradsae_fast.quality import Tally
from gradsae_fast.records import Batch, CorpusPlan, SegmentScores, TokenDocument, Window
from gradsae_fast.sae.canonical import SaeFacts
from gradsae_fast.sae.load import check_sources, load_sae
from gradsae_fast.score import BatchScores, SitedSae, begin_batch
from gradsae_fast.sparse_code import kernels_for
from gradsae_fast.store.format.layout import check_names
from gradsae_fast.store.places.place import place_of
from gradsae_fast.store.records.facts import read_facts
from gradsae_fast.store.records.generations import name_of_facts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A run that only needs to be carried out."""

    config: ExtractConfig
    method: Method
    objectives: tuple[Objective, ...]
    lm: LanguageModel
    sited: tuple[SitedSae, ...]
    corpus: Corpus
    rules: TokenRules
    bos_decision: str
    plan: CorpusPlan
    plan_key: str

    def identity(self) -> dict[str, Any]:
        """Everything that the scores depend on; a store is resumed only by a run of the same identity."""
        corpus, score, run = self.config.corpus, self.config.score, self.config.run
        return {
            "model": {
                "digest": self.lm.digest,
                "dtype": str(self.lm.dtype),
                "device": self.lm.device.type,
                "attention": self.lm.model.config._attn_implementation,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
            "saes": {
                one.site.path: {
                    "digest": one.sae.facts.digest,
                    "num_latents": one.sae.num_latents,
                    "kernels": kernels_for(one.sae, self.lm.device, self.lm.dtype),
                }
                | ({"reads": one.wiring.reads.path} if one.wiring.is_transcoder else {})
                | ({"dtype": one.sae.facts.dtype} if one.sae.facts.dtype != "float32" else {})
                for one in self.sited
            },
            "corpus": {"plan": self.plan.digest, "context_length": corpus.context_length, "overlap": corpus.overlap},
            "tokens": self.rules.to_json(),
            "method": _without_defaults(self.method)
            | {"sink_norm_ratio": score.sink_norm_ratio, "nonfinite": score.nonfinite},
            "functions": {o.name: function_digest(o.function) for o in self.objectives if o.function is not None},
            "batching": {
                "tokens_per_batch": run.tokens_per_batch,
                "head_chunk_tokens": run.head_chunk_tokens,
                "batch_cost": batch_cost(self.lm.device),
            },
            "versions": {name: version(name) for name in ("gradsae-fast", "torch", "transformers", "tokenizers")},
        }

    def facts(self) -> dict[str, Any]:
        """What is recorded beside the identity: where things came from and on what machine."""
        return {
            "config": dataclasses.asdict(self.config),
            "saes": {one.site.path: dataclasses.asdict(one.sae.facts) for one in self.sited},
            "bos": self.bos_decision,
            "plan_key": self.plan_key,
            "machine": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "device": torch.cuda.get_device_name() if self.lm.device.type == "cuda" else platform.processor(),
                "threads": torch.get_num_threads(),
            }
            | ({"spread": _spread_over(self.lm)} if self.config.model.device_map else {}),
        }

    def cut(self, document: TokenDocument, slot: int) -> list[Window]:
        """The windows of one document, which is number `slot` of its segment."""
        corpus = self.config.corpus
        return cut_windows(document, slot, context_length=corpus.context_length, overlap=corpus.overlap)

    def batches(self, windows: Iterable[Window]) -> list[Batch]:
        """Windows of similar length together, within the token budget."""
        return batch_windows(
            windows, tokens_per_batch=self.config.run.tokens_per_batch, batch_cost=batch_cost(self.lm.device)
        )

    def score_segment(
        self,
        index: int,
        documents: Sequence[TokenDocument],
        *,
        tallies: Mapping[str, Tally] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> SegmentScores:
        """Score whole documents: windows of similar length go together, rows return to corpus order."""
        return self.begin_segment(index, documents, tallies=tallies, on_batch=on_batch).finish()

    def begin_segment(
        self,
        index: int,
        documents: Sequence[TokenDocument],
        *,
        tallies: Mapping[str, Tally] | None = None,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> SegmentBuilder:
        """`score_segment`, but for the work that is left when the last batch is scored: a builder to be finished."""
        builder = SegmentBuilder(
            index,
            documents,
            num_latents={one.site.path: one.sae.num_latents for one in self.sited},
            method=self.method,
            quarantine=self.config.score.nonfinite == "quarantine",
        )
        windows = [window for slot, document in enumerate(documents) for window in self.cut(document, slot)]

        def take(sent: tuple[Batch, Callable[[], BatchScores]]) -> None:
            batch, arrive = sent
            builder.add(batch, arrive())

        with Behind(take, thread="arrivals") as arrivals:
            for batch in self.batches(windows):
                arrivals.hand_over((batch, self._begin(batch, tallies)))
                if on_batch is not None:
                    on_batch(batch)
        return builder

    def _begin(self, batch: Batch, tallies: Mapping[str, Tally] | None) -> Callable[[], BatchScores]:
        return begin_batch(
            self.lm,
            self.sited,
            self.method,
            self.objectives,
            batch,
            tallies=tallies,
            nonfinite=self.config.score.nonfinite,
            chunk=self.config.run.head_chunk_tokens,
        )


def batch_cost(device: torch.device) -> int:
    """What a batch costs besides its tokens, in tokens: reading the weights on a CPU, launching kernels on a GPU."""
    return 32 if device.type == "cpu" else 512


def prepare(
    config: ExtractConfig,
    functions: Mapping[str, ObjectiveFunction] | None = None,
    documents: Iterable[Any] | None = None,
) -> Prepared:
    """Load and plan. Raises the errors of every room.

    `functions` are the caller's own objectives by name; `documents` (str, mappings or Documents) take the place of the
    corpus that the configuration names.
    """
    functions = functions or {}
    method = check_config(config, tuple(functions))
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    corpus = _open_corpus(config.corpus, documents)
    check_sources(sae.path for sae in config.saes)  # loading a model may take minutes
    lm = load_model(config.model)
    _check_context(lm, config.corpus)
    sited = load_sited_saes(lm, config.saes)
    check_names(f"{objective}@{one.site.path}" for objective in method.objectives for one in sited)
    rules, decision = decide_bos(
        lm.tokenizer,
        [one.sae.facts.prepend_bos for one in sited],
        config.corpus.bos,
        masked_ids=frozenset(config.score.mask_token_ids),
    )
    _check_masked_ids(lm, config.score.mask_token_ids)
    key = plan_key(corpus.manifest(), tokenizer_digest(lm.tokenizer), rules)
    plan = _stored_plan(config.store.path, key) or make_plan(corpus, lm.tokenizer, rules)
    return Prepared(
        config=config,
        method=method,
        objectives=tuple(Objective(name=name, function=functions.get(name)) for name in method.objectives),
        lm=lm,
        sited=sited,
        corpus=corpus,
        rules=rules,
        bos_decision=decision,
        plan=plan,
        plan_key=key,
    )


def load_sited_saes(lm: LanguageModel, saes: Iterable[SaeConfig]) -> tuple[SitedSae, ...]:
    """Load every SAE and put it at its site: the one given, else the one that its metadata names."""
    sited: dict[str, SitedSae] = {}
    for config in saes:
        sae = load_sae(
            config.path,
            device=lm.device,
            dtype=getattr(torch, config.dtype),
            revision=config.revision,
            norm_factor=config.norm_factor,
            k=config.k,
        )
        one = SitedSae(wiring=_wire(lm, config, sae.facts), sae=sae)
        for verb, width, site in (("reads", sae.d_in, one.wiring.reads), ("writes", sae.d_out, one.site)):
            if site.is_layer and width != lm.width and not one.wiring.is_cross_layer:
                raise SaeError(
                    f"the SAE {config.path!r} {verb} width {width}, but {lm.source!r} has width {lm.width}: it was "
                    f"trained on another model ({sae.facts.model_name or 'not stated'}). Check --model and --sae."
                )
        if one.site.path in sited:
            raise ConfigError(f"two SAEs at {one.site.path}; expected one a site. Run them one after the other.")
        sited[one.site.path] = one
    return tuple(sited.values())


def _wire(lm: LanguageModel, config: SaeConfig, facts: SaeFacts) -> Wiring:
    """Where an SAE goes: as the configuration says, else as its metadata does."""
    if facts.writes:
        if config.site is not None:
            raise ConfigError(
                f"site = {config.site!r} would have no effect: {config.path!r} writes {', '.join(facts.writes)}."
            )
        writes = tuple(lm.site(spelling) for spelling in facts.writes)
    else:
        spelling = config.site or facts.site or facts.hook_name
        if spelling is None:
            raise SaeError(f"the SAE {config.path!r} does not say where it belongs. Give its site with --site.")
        writes = (lm.site(spelling),)
    reads = config.reads or facts.reads
    return Wiring(
        reads=writes[0] if reads is None else lm.site(reads), writes=writes, is_cross_layer=bool(facts.writes)
    )


def _without_defaults(method: Method) -> dict[str, Any]:
    """A method as it is recorded: with what differs from a default, so that older stores stay valid."""
    fields = {field.name: field.default for field in dataclasses.fields(method)}
    return {name: value for name, value in dataclasses.asdict(method).items() if value != fields[name]}


def with_sink_limits(prepared: Prepared, medians: Mapping[str, float]) -> Prepared:
    """The run with attention sinks recognised by norm, as multiples of the given median norms."""
    ratio = prepared.config.score.sink_norm_ratio
    sited = tuple(one.with_sinks(ratio, medians) for one in prepared.sited)
    return dataclasses.replace(prepared, sited=sited)


def _open_corpus(config: CorpusConfig, documents: Iterable[Any] | None) -> Corpus:
    return open_corpus(
        config.path if documents is None else documents,
        text_column=config.text_column,
        id_column=config.id_column,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        contrast_columns=config.contrast_columns,
        patch_column=config.patch_column,
        metadata_columns=config.metadata_columns,
        subset=config.subset,
        split=config.split,
        max_documents=config.max_documents,
    )


def _check_context(lm: LanguageModel, corpus: CorpusConfig) -> None:
    if lm.max_context is not None and corpus.context_length > lm.max_context:
        raise ConfigError(
            f"context_length is {corpus.context_length}, but {lm.source!r} was built for at most {lm.max_context} "
            "positions. Lower --context-length to that."
        )


def _check_masked_ids(lm: LanguageModel, masked_ids: Iterable[int]) -> None:
    for token_id in masked_ids:
        if not 0 <= token_id < len(lm.tokenizer):
            raise ConfigError(
                f"mask_token_ids has {token_id}, which has no effect: the vocabulary has {len(lm.tokenizer)} tokens."
            )


def _stored_plan(path: str, key: str) -> CorpusPlan | None:
    """The plan that a store keeps under the same key, so that an unchanged corpus is not tokenised again."""
    for number in count():
        stored = read_facts(place_of(path), name_of_facts("plan", number))
        if stored is None or stored["key"] == key:
            return plan_from_json(stored["plan"]) if stored else None
    return None


def _spread_over(lm: LanguageModel) -> dict[str, str]:
    """On which device each part of a model lies."""
    return {name: str(device) for name, device in getattr(lm.model, "hf_device_map", {}).items()}


def plan_facts(prepared: Prepared) -> dict[str, Any]:
    """What `_stored_plan` reads back."""
    return {"key": prepared.plan_key, "plan": plan_to_json(prepared.plan)}
