"""The index of a store, as rankings use it: bounds, leading tokens, and totals of the whole corpus."""

from gradsae_fast.ranking.index.make import IndexReport, build_index

__all__ = ["IndexReport", "build_index"]
