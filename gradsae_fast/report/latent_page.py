"""The page of one latent: its numbers, histograms, contexts, groups, and what its decoder row says."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradsae_fast.counts import counted
from gradsae_fast.method import influence_unit
from gradsae_fast.report.charts import rows_of, value_chart
from gradsae_fast.report.contrasts import ContrastOfLatents, GroupMeans
from gradsae_fast.report.marked import LATENT_STEPS, mark_passage
from gradsae_fast.report.numbers import count, short, signed
from gradsae_fast.report.pages import Limits
from gradsae_fast.report.passages import Passage
from gradsae_fast.report.peaks import ENDS, Peaks
from gradsae_fast.report.subject import DENSE, Subject
from gradsae_fast.report.svg import interval
from gradsae_fast.visible import visible, word

NAMES = {
    "raising": "Raises the objective most",
    "lowering": "Lowers the objective most",
    "activation": "Fires hardest",
}
_ORDERS = {
    "raising": "largest influence above zero, largest first",
    "lowering": "most negative influence first",
    "activation": "largest activation first, whatever the influence",
}


def latent_file(latent: int) -> str:
    """Return the path of a latent's page in the audit."""
    return f"latents/{latent:06d}.html"


class LatentPages:
    """What the pages of latents are made of, for one audit."""

    def __init__(self, subject: Subject, peaks: Peaks) -> None:
        self._subject = subject
        self._peaks = peaks
        self._means: Sequence[GroupMeans] = subject.contrasts.means(subject.latents)
        self._contrasts: Sequence[ContrastOfLatents] = subject.contrasts.of_latents(subject.latents)
        self._total_absolute = float(subject.totals["absolute"].sum())

    def values(self, row: int, passages: Mapping[str, Sequence[Passage]], limits: Limits) -> dict[str, Any]:
        """Return what the template needs for the latent of a row.

        Args:
            row: position of the latent among those with a page.
            passages: its contexts, for each of ENDS.
            limits: how many of them are shown.
        """
        subject = self._subject
        latent = subject.latents[row]
        total, latents = subject.total(latent), subject.latents
        values: dict[str, Any] = {
            "number": latent,
            "label": subject.labels.get(latent, ""),
            "before": latents[row - 1] if row else None,
            "after": latents[row + 1] if row + 1 < len(latents) else None,
            "total": total,
            "group_rows": self._group_rows(row),
            "contrast_rows": self._contrast_rows(row),
            "decoder": self._decoder(latent),
        }
        if total is None:
            return values
        return values | {
            "share": total["absolute"] / self._total_absolute if self._total_absolute else 0.0,
            "mean_influence": total["influence"] / subject.facts["num_tokens"],
            "dense": total["frequency"] > DENSE,
            "charts": self._charts(row),
            **self._contexts(row, passages, limits),
        }

    def _charts(self, row: int) -> list[dict[str, Any]]:
        unit = influence_unit(self._subject.question.objective)
        named = (
            (f"influence [{unit}]", "Influence", self._peaks.influence.of(row), True),
            ("activation", "Activation", self._peaks.activation.of(row), False),
        )
        values, left_out = int(self._peaks.num_values_L[row]), int(self._peaks.num_nonfinite_L[row])
        caption = f"{counted(values - left_out, 'counted token')} on which it is active; heights are logarithmic."
        if left_out:
            caption += f" Left out: {counted(left_out, 'token')}, as numbers there are not finite."
        return [
            {
                "name": name,
                "drawing": value_chart(histogram, name=axis, is_signed=is_signed),
                "rows": rows_of(histogram),
                "caption": caption,
            }
            for axis, name, histogram, is_signed in named
            if histogram is not None
        ]

    def _contexts(self, row: int, passages: Mapping[str, Sequence[Passage]], limits: Limits) -> dict[str, Any]:
        hits = self._peaks.lists(row)
        scale = max((abs(hits[end]["influence"][0]) for end in ENDS[:2] if len(hits[end])), default=0.0)
        activation_scale = max(
            (float(abs(found["activation"]).max()) for found in hits.values() if len(found)), default=0.0
        )
        lists = []
        for end in ENDS:
            shown = min(len(hits[end]), limits.contexts)
            contexts = [
                {
                    "influence": float(hit["influence"]),
                    "activation": float(hit["activation"]),
                    "text": mark_passage(passage, scale, activation_scale),
                    "key": passage.key,
                    "document": passage.document,
                    "position": passage.position,
                }
                for hit, passage in zip(hits[end][:shown], passages[end][:shown], strict=True)
            ]
            lists.append(
                {"id": end, "name": NAMES[end], "caption": self._caption(end, row, shown), "contexts": contexts}
            )
        steps = ", ".join(f"{short(100 * step)} %" for step in LATENT_STEPS)
        return {"lists": lists, "scale": scale, "activation_scale": activation_scale, "steps": steps}

    def _caption(self, end: str, row: int, shown: int) -> str:
        active = int(self._peaks.num_values_L[row])
        if not shown:
            return f"No token: on none of {count(active)} does it have such an influence."
        of = counted(active, "token")
        return f"{count(shown)} of the {of} on which it is active; {_ORDERS[end]}, ties in corpus order."

    def _group_rows(self, row: int) -> list[dict[str, Any]]:
        means = [(group, float(group.mean_L[row]), float(group.half_width_L[row])) for group in self._means]
        reach = [abs(mean) + (half if half == half else 0.0) for _, mean, half in means]
        largest = max(reach, default=0.0)
        return [
            {
                "name": group.name,
                "num_documents": group.num_documents,
                "mean": mean,
                "interval": f"{signed(mean - half)} to {signed(mean + half)}" if half == half else "undefined",
                "drawing": interval(mean, half if half == half else 0.0, largest),
            }
            for group, mean, half in means
        ]

    def _contrast_rows(self, row: int) -> list[dict[str, Any]]:
        return [
            {
                "name": found.name,
                "difference": float(found.difference_L[row]),
                "effect_size": float(found.effect_size_L[row]),
                "q": float(found.q_L[row]),
                "auroc": float(found.auroc_L[row]),
            }
            for found in self._contrasts
        ]

    def _decoder(self, latent: int) -> dict[str, Any] | None:
        described = self._subject.described
        if described is None:
            return None
        vocabulary = self._subject.vocabulary
        tables = {
            "Promotes most": (described.promoted_CT, described.promoted_effect_CT),
            "Suppresses most": (described.suppressed_CT, described.suppressed_effect_CT),
        }
        sides = [
            {
                "caption": caption,
                "rows": [
                    (word(visible(vocabulary[token])) if token < len(vocabulary) else f"<{token}>", effect)
                    for token, effect in zip(tokens_CT[latent].tolist(), effect_CT[latent].tolist(), strict=True)
                ],
            }
            for caption, (tokens_CT, effect_CT) in tables.items()
            if tokens_CT.shape[1]
        ]
        neighbours = zip(described.neighbours_CK[latent].tolist(), described.cosine_CK[latent].tolist(), strict=True)
        return {"sides": sides, "neighbours": list(neighbours)}
