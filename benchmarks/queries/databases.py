"""The same questions in DuckDB and polars, over the long tables: the oracle, and what the speed is compared with.

Answers are (what, score) pairs, largest score first. They have no texts, which ours look up.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl

from benchmarks.queries.long_table import DOCUMENTS
from benchmarks.queries.questions import ROWS, Subjects

Answer = list[tuple[int, float]]
_G = "CAST(activation * projection AS DOUBLE)"


def in_duckdb(table: Path, subjects: Subjects) -> dict[str, Callable[[], Answer]]:
    """Every question that SQL answers, by its name."""
    documents = table.with_name(DOCUMENTS)

    def answer(query: str, *values: object) -> Callable[[], Answer]:
        def ask() -> Answer:
            with duckdb.connect() as base:
                return [(int(what), float(score)) for what, score in base.execute(query, values).fetchall()]

        return ask

    def ranked(what: str, score: str, where: str, group: bool) -> str:
        grouped = f"GROUP BY {what}" if group else ""
        return (
            f"SELECT {what}, {score} AS score FROM '{table}' WHERE counted AND {where} {grouped} "
            f"ORDER BY score DESC, {what} LIMIT {ROWS}"
        )

    key = f"document = (SELECT document FROM '{documents}' WHERE key = ?)"
    group = f"document IN (SELECT document FROM '{documents}' WHERE a)"
    contrast = (
        f"SELECT * FROM (SELECT latent, "
        f"sum(CASE WHEN d.a THEN {_G} / d.counted ELSE 0 END) / (SELECT count(*) FROM '{documents}' "
        f"WHERE a AND counted > 0) - sum(CASE WHEN d.b THEN {_G} / d.counted ELSE 0 END) / (SELECT count(*) FROM "
        f"'{documents}' WHERE b AND counted > 0) AS score FROM '{table}' t JOIN '{documents}' d USING (document) "
        f"WHERE t.counted AND (d.a OR d.b) GROUP BY latent) ORDER BY abs(score) DESC, latent LIMIT {ROWS}"
    )
    return {
        "latents of a document": answer(ranked("latent", f"sum({_G})", key, True), subjects.document),
        "tokens of a frequent latent": answer(ranked("token", _G, "latent = ?", False), subjects.frequent),
        "tokens of a median latent": answer(ranked("token", _G, "latent = ?", False), subjects.median),
        "tokens of a latent in a group": answer(
            ranked("token", _G, f"latent = ? AND {group}", False), subjects.frequent
        ),
        "documents of a frequent latent": answer(
            ranked("document", f"sum({_G})", "latent = ?", True), subjects.frequent
        ),
        "latents of the corpus": answer(ranked("latent", f"sum({_G})", "true", True)),
        "latents of a group": answer(ranked("latent", f"sum({_G})", group, True)),
        "contrast of two groups": answer(contrast),
    }


def in_polars(table: Path, subjects: Subjects) -> dict[str, Callable[[], Answer]]:
    """Every question as a lazy query, by its name."""
    nonzeros = pl.scan_parquet(table).filter(pl.col("counted"))
    documents = pl.read_parquet(table.with_name(DOCUMENTS))
    g = (pl.col("activation") * pl.col("projection")).cast(pl.Float64)
    number = int(documents.filter(pl.col("key") == subjects.document)["document"][0])
    group = pl.col("document").is_in(documents.filter(pl.col("a"))["document"].implode())

    def ranked(what: str, where: pl.Expr, *, grouped: bool) -> Callable[[], Answer]:
        def ask() -> Answer:
            chosen = nonzeros.filter(where)
            scored = chosen.group_by(what).agg(score=g.sum()) if grouped else chosen.select(what, score=g)
            best = scored.sort(["score", what], descending=[True, False]).head(ROWS).collect()
            return [(int(row[0]), float(row[1])) for row in best.rows()]

        return ask

    def contrast() -> Answer:
        joined = nonzeros.join(documents.lazy(), on="document", suffix="_document").filter(pl.col("a") | pl.col("b"))
        sample = g / pl.col("counted_document")
        means = [
            pl.when(pl.col(name)).then(sample).otherwise(0.0).sum()
            / documents.filter(pl.col(name) & (pl.col("counted") > 0)).height
            for name in ("a", "b")
        ]
        scored = joined.group_by("latent").agg(score=means[0] - means[1]).with_columns(size=pl.col("score").abs())
        best = scored.sort(["size", "latent"], descending=[True, False]).head(ROWS).collect()
        return [(int(row[0]), float(row[1])) for row in best.rows()]

    frequent, median = (pl.col("latent") == latent for latent in (subjects.frequent, subjects.median))
    return {
        "latents of a document": ranked("latent", pl.col("document") == number, grouped=True),
        "tokens of a frequent latent": ranked("token", frequent, grouped=False),
        "tokens of a median latent": ranked("token", median, grouped=False),
        "tokens of a latent in a group": ranked("token", frequent & group, grouped=False),
        "documents of a frequent latent": ranked("document", frequent, grouped=True),
        "latents of the corpus": ranked("latent", pl.lit(True), grouped=True),
        "latents of a group": ranked("latent", group, grouped=True),
        "contrast of two groups": contrast,
    }
