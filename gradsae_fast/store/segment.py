"""One committed segment, read table by table, column by column or document by document. N tokens, M documents.

Nothing of a segment is looked at before it is asked for. An array that cannot be read is explained by what its commit
record says: an object that is missing or cut short makes it a half-copied store, other damage is the array's own.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from gradsae_fast.errors import BusyError, QueryError, StoreError
from gradsae_fast.records import DocumentTable, TokenTable
from gradsae_fast.store.arrays.site import StoredSite
from gradsae_fast.store.arrays.stored import METADATA, SHARD, StoredArray
from gradsae_fast.store.arrays.strings import JsonText, decode_json, decode_strings
from gradsae_fast.store.format.declared import declared, mismatch
from gradsae_fast.store.format.layout import TOKENS, Array, component, path_of
from gradsae_fast.store.places.ahead import expect
from gradsae_fast.store.places.links import PlainFolders
from gradsae_fast.store.places.place import Place, below
from gradsae_fast.store.records.commits import CommitRecord, SegmentSummary, missing_objects
from gradsae_fast.store.records.effective import SegmentRecords

_TOKEN_COLUMNS = tuple(spec.name for spec in TOKENS)


class SegmentArray(StoredArray):
    """An array of a segment, whose faults are those of the segment's objects where these are not all there."""

    def __init__(self, segment: "StoredSegment", group: str, path: str, sizes: Mapping[str, int]) -> None:
        self._segment = segment
        segment.plain.check(f"{group}{path}")
        super().__init__(below(segment.folder, f"{group}{path}"), f"{segment.label}, {group}{path}")
        wrong = mismatch(declared(path), self.dtype, len(self), sizes)
        if wrong is not None:
            raise self._damaged(wrong)

    def _damaged(self, what: str) -> StoreError:
        return self._segment.half_copied() or super()._damaged(what)


class StoredSegment:
    """A committed segment; made by `open_scores`."""

    def __init__(
        self, store: Place, index: int, summary: SegmentSummary, records: SegmentRecords | None = None
    ) -> None:
        self.index = index
        self.label = f"{store}, segment {index}"
        self.folder = store / summary.folder
        self.plain = PlainFolders(self.folder)
        self._store = store
        self._summary = summary
        self._records = records or SegmentRecords(store)
        self._sites: dict[str, StoredSite] = {}
        self._arrays: dict[str, StoredArray] = {}

    @property
    def commit(self) -> dict[str, Any]:
        """The commit record: counts, sites, objectives, values, columns, digest, objects, writer."""
        return self._record.to_document()

    @property
    def summary(self) -> SegmentSummary:
        """The commit record without its objects."""
        return self._summary

    def check_folder(self) -> None:
        """Check that the segment's folder exists, which costs next to nothing on a disk, and a request in a bucket.

        Raises:
            StoreError: it does not, or is a link.
        """
        PlainFolders(self._store).check(self._summary.folder)
        if not self.folder.is_dir():
            raise self.half_copied() or StoreError(f"{self.label}: its folder {self.folder} is missing")

    def half_copied(self) -> StoreError | None:
        """Return the error to raise where an object of the segment is absent or of another length; None: all there.

        Raises:
            StoreError: the commit record is damaged or no longer there.
        """
        faults = missing_objects(self._store, self._record)
        if not faults:
            return None
        if not self._records.is_effective(self.index, self._summary.folder):
            return BusyError(
                f"{self.label}: `gradsae drop` or `gradsae compact` has put another segment in its place since the "
                "store was opened: open it again"
            )
        key, what = faults[0]
        return StoreError(
            f"{self._store}: segment {self.index} is damaged: its object {self._summary.folder}/{key} {what} "
            f"({len(faults)} such objects); copy the whole folder again, or run `gradsae repair` and extract again"
        )

    @property
    def digest(self) -> str:
        """Digest of all bytes of the segment: equal where the segments are byte-identical."""
        return self._summary.digest

    @property
    def num_bytes(self) -> int:
        """Bytes of all its objects."""
        return self._record.num_bytes

    @property
    def num_tokens(self) -> int:
        """N, scored tokens."""
        return int(self._summary.facts["counts"]["tokens"])

    @property
    def num_documents(self) -> int:
        """M."""
        return int(self._summary.facts["counts"]["documents"])

    def tokens(self) -> TokenTable:
        """Return the table of scored tokens."""
        return TokenTable(**{name: self.token_column(name) for name in _TOKEN_COLUMNS})

    def token_column(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return one column [N] of the table of tokens, or its rows `start` to `stop`, reading only their chunks.

        Raises:
            QueryError: no such column.
        """
        if name not in _TOKEN_COLUMNS:
            raise QueryError(f"tokens have no column {name!r}; they have {', '.join(_TOKEN_COLUMNS)}")
        values = self._array(f"tokens/{name}").read(start, stop)
        if name == "document" and len(values) and values.max() >= self.num_documents:
            raise StoreError(f"{self.label}, tokens/document speaks of document {values.max()} of {self.num_documents}")
        return values

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

    def key_of(self, slot: int) -> str:
        """Return the id of one document, reading only the chunks that hold it."""
        return self._read_string("key", slot)

    def text_of(self, slot: int) -> str:
        """Return the text of one document, reading only the chunks that hold it."""
        return self._read_string("text", slot)

    def expect(self, paths: Iterable[str], *, whole: bool = False) -> None:
        """Tell the system that these arrays will be read, whole or in part; see `ahead`."""
        expect((below(self.folder, f"{path}/{name}") for path in paths for name in (METADATA, SHARD)), whole=whole)

    def expect_sums(self, site: str, columns: Iterable[str]) -> None:
        """Tell the system that these sums of most documents at a site will be read."""
        names = ["indptr", "indices"]
        for column in columns:
            name, _, objective = column.partition("/")
            names.append(f"{name}/{component(objective)}" if objective else name)
        sums = f"sites/{component(site)}/documents"
        self.expect(["documents/num_counted", *(f"{sums}/{name}" for name in names)], whole=True)

    def expect_metadata(self, columns: Iterable[str]) -> None:
        """Tell the system that these columns of metadata will be read, where the segment has them."""
        folders = [f"documents/metadata/{component(name)}" for name in columns if name in self.columns]
        self.expect(f"{folder}/{part}" for folder in folders for part in ("bytes", "offsets"))

    def expect_tokens(self, site: str) -> None:
        """Tell the system that the scores of some tokens at a site will be read, with what says which tokens count."""
        scores = f"sites/{component(site)}/by_token"
        projections = (
            path_of(f"{scores}/projection/{{objective}}", name) for name in self._summary.facts["objectives"]
        )
        self.expect(
            [
                *(f"tokens/{name}" for name in ("document", "mask")),
                "documents/num_counted",
                *(f"{scores}/{name}" for name in ("indptr", "indices", "activation")),
                *projections,
            ]
        )

    def counted_tokens(self) -> Array:
        """Return how many tokens of each document count in aggregates, uint32 [M]: what means divide by."""
        return self._read("documents/num_counted")

    def scored_tokens(self) -> Array:
        """Return how many scored tokens each document has, uint32 [M]."""
        return self._read("documents/num_tokens")

    def objective_values(self) -> dict[str, Array]:
        """Return the value of each objective for each document, float64 [M], without reading texts.

        Columns are named by objective, or "objective@site" where each site was spliced in a run of its own.
        """
        template = "documents/objectives/{column}"
        return {name: self._read(path_of(template, name)) for name in self._summary.facts["values"]}

    def values_of(self, objective: str, site: str) -> Array:
        """Return the value of an objective for each document, float64 [M]: of the site's own run where it had one."""
        of_site = f"{objective}@{site}"
        column = of_site if of_site in self._summary.facts["values"] else objective
        return self._read(path_of("documents/objectives/{column}", column))

    @property
    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return list(self._summary.facts["columns"])

    def metadata(self, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Return the metadata columns, all or those of the named ones that exist, one JSON value per document."""
        return {name: self._read_json(name) for name in self.columns if columns is None or name in columns}

    def metadata_texts(self) -> dict[str, list[JsonText]]:
        """Return the metadata columns as the JSON texts that they are stored as."""
        return {name: list(map(JsonText, self._read_strings(f"metadata/{component(name)}"))) for name in self.columns}

    def site(self, name: str) -> StoredSite:
        """Return the scores of one site.

        Raises:
            QueryError: no such site.
        """
        if name not in self._sites:
            widths = {site["name"]: int(site["num_latents"]) for site in self._summary.facts["sites"]}
            if name not in widths:
                raise QueryError(f"{self.label} has no site {name!r}; it has {', '.join(widths)}")
            self._sites[name] = StoredSite(
                open_array=partial(self._site_array, name, widths[name]),
                label=f"{self.label}, site {name}",
                name=name,
                objectives=self._summary.facts["objectives"],
                shape=(self.num_tokens, widths[name]),
                sides=name in self._summary.signed,
            )
        return self._sites[name]

    def __repr__(self) -> str:
        return f"<StoredSegment {self.index}: {self.num_tokens:,} tokens of {self.num_documents:,} documents>"

    @cached_property
    def _record(self) -> CommitRecord:
        record = self._records.find(self.index, self._summary.folder)
        if record is None:
            raise BusyError(
                f"{self.label}: its commit record is no longer there; `gradsae repair` has dropped it, or another "
                "segment was put in its place: open the store again"
            )
        return record

    def _array(self, path: str) -> StoredArray:
        if path not in self._arrays:
            self._arrays[path] = SegmentArray(self, "", path, self._sizes)
        return self._arrays[path]

    def _site_array(self, name: str, num_latents: int, path: str) -> StoredArray:
        nonzeros = self._summary.facts["counts"]["nnz"][name]
        sizes = {**self._sizes, "latent": num_latents, "nonzero": nonzeros}
        return SegmentArray(self, f"sites/{component(name)}/", path, sizes)

    @property
    def _sizes(self) -> dict[str, int]:
        return {"token": self.num_tokens, "document": self.num_documents}

    def _read(self, path: str) -> Array:
        return self._array(path).read()

    def _read_strings(self, name: str) -> list[str]:
        data, offsets = self._read(f"documents/{name}/bytes"), self._read(f"documents/{name}/offsets")
        return decode_strings(data, offsets, f"{self.label}, documents/{name}")

    def _read_string(self, name: str, slot: int) -> str:
        offsets = self._array(f"documents/{name}/offsets").read(slot, slot + 2)
        data = self._array(f"documents/{name}/bytes").read(int(offsets[0]), int(offsets[1]))
        return decode_strings(data, offsets - offsets[0], f"{self.label}, documents/{name}")[0]

    def _read_json(self, column: str) -> list[Any]:
        folder = f"documents/metadata/{component(column)}"
        return decode_json(self._read(f"{folder}/bytes"), self._read(f"{folder}/offsets"), f"{self.label}, {folder}")
