"""The procedure of the GradSAE authors, as their paper and published code describe it, with the objective of the rest.

One prompt at a time, no KV cache: at every step of greedy decoding the whole text runs through the model with the SAE
spliced in, dense, with a graph; the active latents of all positions are listed. One step is differentiated. Scores are
ReLU(gradient x latent), averaged over positions and sorted as a whole; prompts and scores go to a JSON file. Theirs
differentiates the probability of one token that it generates; here it is the log-likelihood of the prompt, at the first
step, so that numbers can be compared. Its seconds are also told apart from those of the decoding around it.

Letters: T positions, C latents, V vocabulary, K chosen latents.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.dense import Splice, collect, load_model, log_likelihood, touch
from benchmarks.peers.jumprelu import JumpReluSae
from benchmarks.peers.meter import Meter
from benchmarks.peers.pairs import Coo
from benchmarks.peers.process import read_job
from benchmarks.peers.workload import Batch, Workload


def main(arguments: list[str] | None = None) -> None:
    """Score the documents that the workload names for it."""
    job, meter = read_job(arguments), Meter()
    settings = job.workload.settings
    model, sae = load_model(job.workload), JumpReluSae(Path(settings.sae))
    touch(model, sae)
    meter.loaded()
    run = _Run(job.workload, model, sae, meter)
    for document in settings.authors_documents:
        run.decode(document, 1 if job.exact else settings.decode_steps)  # numbers come of the first step alone
    job.stored.mkdir(parents=True, exist_ok=True)
    (job.stored / "influences.json").write_text(json.dumps(run.scores), encoding="utf-8")
    meter.end()
    num_tokens = len(job.workload.tokens_of(settings.authors_documents))
    parts = {"the step that is scored": run.scored_seconds}
    measures = meter.measures(num_tokens=num_tokens, stored=job.stored, num_pairs=run.num_scores, parts=parts)
    job.finish(measures, run.coo.pairs())


class _Run:
    """Model, SAE, and what has been found so far."""

    def __init__(self, workload: Workload, model: Any, sae: JumpReluSae, meter: Meter) -> None:
        self.workload, self.model, self.meter = workload, model, meter
        self.splice = Splice(sae, leaf=True, detach_hidden=True)
        self.scores: dict[str, dict[str, list[list[float]]]] = {}
        lines = (workload.folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        self.prompts = [json.loads(line)["text"] for line in lines]
        self.coo = Coo()
        self.num_scores = 0
        self.scored_seconds = 0.0

    def decode(self, document: int, steps: int) -> None:
        """Greedy decoding of one prompt, one step or more; the first is scored."""
        batch = self.workload.batch([document])
        ids_1T, spliced_1T = batch.token_ids_BT, batch.spliced_BT
        for step in range(steps):
            started = self.meter.elapsed()
            logits_1TV = self.forward(ids_1T, spliced_1T)
            if step == 0:
                self.score(batch, logits_1TV, self.prompts[document])
                self.scored_seconds += self.meter.elapsed() - started
            next_11 = logits_1TV[:, -1:].softmax(-1).argmax(-1)
            del logits_1TV
            ids_1T = torch.cat([ids_1T, next_11], 1)
            spliced_1T = torch.cat([spliced_1T, torch.ones_like(next_11, dtype=torch.bool)], 1)

    def forward(self, ids_1T: Tensor, spliced_1T: Tensor) -> Tensor:
        """Logits [1, T, V] of the whole text; the active latents are listed."""
        self.splice.spliced_BT = spliced_1T
        with self.splice.at(self.model.get_submodule(self.workload.settings.site)):
            logits_1TV: Tensor = self.model(input_ids=ids_1T, use_cache=False).logits
        assert self.splice.latents_BTC is not None
        self.splice.latents_BTC.detach().nonzero().tolist()
        return logits_1TV

    def score(self, batch: Batch, logits_1TV: Tensor, prompt: str) -> None:
        """Backward, mean positive influence, and its order."""
        log_likelihood(logits_1TV, batch.label_BT).backward()
        latents_1TC = self.splice.latents_BTC
        assert latents_1TC is not None
        assert latents_1TC.grad is not None
        score_C = (latents_1TC.detach() * latents_1TC.grad).relu().mean(1)[0]
        k = int((latents_1TC[0, -1] != 0).sum()) // 2
        descending_C = score_C.argsort(descending=True)
        positive_C = descending_C[score_C[descending_C] > 0]
        chosen = {"top": descending_C[:k], "bottom": positive_C[len(positive_C) - k :]}
        self.scores[prompt] = {side: [[int(c), float(score_C[c])] for c in found_K] for side, found_K in chosen.items()}
        self.num_scores += 2 * k
        collect(self.coo, batch, latents_1TC, tuned=False)
        self.model.zero_grad()


if __name__ == "__main__":
    main()
