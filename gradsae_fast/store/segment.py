"""One committed segment, read table by table or column by column. N tokens, M documents."""

from pathlib import Path
from typing import Any

from gradsae_fast.errors import QueryError
from gradsae_fast.records import DocumentTable, TokenTable
from gradsae_fast.store.arrays import StoredArray
from gradsae_fast.store.commits import CommitRecord
from gradsae_fast.store.layout import TOKENS, Array, component, path_of
from gradsae_fast.store.site import StoredSite
from gradsae_fast.store.strings import decode_json, decode_strings

_TOKEN_COLUMNS = tuple(spec.name for spec in TOKENS)


class StoredSegment:
    """A committed segment; made by `open_scores`."""

    def __init__(self, store: Path, index: int, record: CommitRecord) -> None:
        self.index = index
        self._record = record
        self._folder = store / record.folder
        self._label = f"{store}, segment {index}"
        self._sites: dict[str, StoredSite] = {}

    @property
    def commit(self) -> dict[str, Any]:
        """The commit record: counts, sites, objectives, values, columns, digest, objects, writer."""
        return self._record.to_document()

    @property
    def digest(self) -> str:
        """Digest of all bytes of the segment: equal where the segments are byte-identical."""
        return self._record.digest

    @property
    def num_tokens(self) -> int:
        """N, scored tokens."""
        return int(self._record.facts["counts"]["tokens"])

    @property
    def num_documents(self) -> int:
        """M."""
        return int(self._record.facts["counts"]["documents"])

    def tokens(self) -> TokenTable:
        """Return the table of scored tokens."""
        return TokenTable(**{name: self.token_column(name) for name in _TOKEN_COLUMNS})

    def token_column(self, name: str) -> Array:
        """Return one column [N] of the table of tokens.

        Raises:
            QueryError: no such column.
        """
        if name not in _TOKEN_COLUMNS:
            raise QueryError(f"tokens have no column {name!r}; they have {', '.join(_TOKEN_COLUMNS)}")
        return self._read(f"tokens/{name}")

    def documents(self) -> DocumentTable:
        """Return the table of documents, texts included."""
        return DocumentTable(
            key=self.document_keys(),
            source=self._read_strings("source"),
            row=self._read("documents/row"),
            num_tokens=self._read("documents/num_tokens"),
            status=self._read("documents/status"),
            text=self._read_strings("text"),
            metadata=self.metadata(),
            objectives=self.objective_values(),
        )

    def document_keys(self) -> list[str]:
        """Return the ids of the M documents, without reading texts."""
        return self._read_strings("key")

    def counted_tokens(self) -> Array:
        """Return how many tokens of each document count in aggregates, uint32 [M]: what means divide by."""
        return self._read("documents/num_counted")

    def objective_values(self) -> dict[str, Array]:
        """Return the value of each objective for each document, float64 [M], without reading texts.

        Columns are named by objective, or "objective@site" where each site was spliced in a run of its own.
        """
        template = "documents/objectives/{column}"
        return {name: self._read(path_of(template, name)) for name in self._record.facts["values"]}

    def values_of(self, objective: str, site: str) -> Array:
        """Return the value of an objective for each document, float64 [M]: of the site's own run where it had one."""
        of_site = f"{objective}@{site}"
        column = of_site if of_site in self._record.facts["values"] else objective
        return self._read(path_of("documents/objectives/{column}", column))

    def metadata(self) -> dict[str, list[Any]]:
        """Return the metadata columns, one JSON value per document."""
        return {name: self._read_json(name) for name in self._record.facts["columns"]}

    def site(self, name: str) -> StoredSite:
        """Return the scores of one site.

        Raises:
            QueryError: no such site.
        """
        if name not in self._sites:
            widths = {site["name"]: int(site["num_latents"]) for site in self._record.facts["sites"]}
            if name not in widths:
                raise QueryError(f"{self._label} has no site {name!r}; it has {', '.join(widths)}")
            place = f"sites/{component(name)}"
            self._sites[name] = StoredSite(
                folder=self._folder / place,
                label=f"{self._label}, site {name}",
                name=name,
                objectives=self._record.facts["objectives"],
                shape=(self.num_tokens, widths[name]),
                sides=any(record.key.startswith(f"{place}/latents/negative/") for record in self._record.objects),
            )
        return self._sites[name]

    def __repr__(self) -> str:
        return f"<StoredSegment {self.index}: {self.num_tokens:,} tokens of {self.num_documents:,} documents>"

    def _read(self, path: str) -> Array:
        return StoredArray(self._folder / path, f"{self._label}, {path}").read()

    def _read_strings(self, name: str) -> list[str]:
        return decode_strings(self._read(f"documents/{name}/bytes"), self._read(f"documents/{name}/offsets"))

    def _read_json(self, column: str) -> list[Any]:
        folder = f"documents/metadata/{component(column)}"
        return decode_json(self._read(f"{folder}/bytes"), self._read(f"{folder}/offsets"))
