"""Every error that the project raises on purpose.

    GradsaeError
    ├── ConfigError        a setting that is missing, unknown, contradictory or without effect
    ├── CorpusError        a corpus that cannot be read, or a row that cannot be used
    ├── ModelError         a language model that cannot be loaded, or a site that it does not have
    ├── SaeError           an SAE that is unreadable, of an unknown family, or does not fit the model
    ├── ScoreError         numbers that cannot be trusted: NaN or Inf in hidden states or gradients
    ├── GateError          the checks before a run failed
    ├── StoreError         a store that is missing, damaged, full or read-only
    │   ├── IdentityError      a store of another run
    │   ├── FormatError        a store of a format version that this release does not know
    │   └── BusyError          another process writes to this store
    ├── BucketError        object storage that did not answer, or refused: nothing is known of what it holds
    ├── EngineError        workers that failed again and again, or from which nothing is heard
    └── QueryError         a ranking question that the store cannot answer

A message says what was found, what was expected, and what to do. The command line prints the message alone.
"""


class GradsaeError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(GradsaeError, ValueError):
    """A setting that is missing, unknown, contradictory or without effect."""


class CorpusError(GradsaeError, ValueError):
    """A corpus that cannot be read, or a row that cannot be used."""


class ModelError(GradsaeError, ValueError):
    """A language model that cannot be loaded, or a site that it does not have."""


class SaeError(GradsaeError, ValueError):
    """An SAE that is unreadable, of an unknown family, or does not fit the model."""


class ScoreError(GradsaeError, ArithmeticError):
    """Numbers that cannot be trusted: NaN or Inf in hidden states or gradients."""


class GateError(GradsaeError):
    """The checks before a run failed."""


class StoreError(GradsaeError, OSError):
    """A store that is missing, damaged, full or read-only."""


class IdentityError(StoreError):
    """A store of another run."""


class FormatError(StoreError):
    """A store of a format version that this release does not know."""


class BusyError(StoreError):
    """Another process writes to this store."""


class BucketError(GradsaeError):
    """Object storage that did not answer, or refused; not a StoreError, since it says nothing about the store."""


class EngineError(GradsaeError, RuntimeError):
    """Workers of an engine that failed again and again, or from which nothing is heard."""


class QueryError(GradsaeError, ValueError):
    """A ranking question that the store cannot answer."""
