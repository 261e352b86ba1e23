"""The variants, in the order in which they are told and run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of doing the same."""

    name: str
    title: str
    module: str  # of this folder
    tuned: bool = False
    environment: str = "own"  # whose interpreter runs it
    covers_all: bool = True  # whether it scores every document of the workload

    @property
    def has_influences(self) -> bool:
        return self.name != "delphi"


ENGINE = Variant(name="engine", title="this engine", module="run_engine")
VARIANTS = (
    Variant(name="plain-usual", title="hooks and autograd, as users write them", module="run_plain"),
    Variant(name="plain-tuned", title="hooks and autograd, tuned", module="run_plain", tuned=True),
    Variant(
        name="saelens-usual",
        title="SAELens's SAE, as users write it",
        module="run_saelens",
        environment="saelens",
    ),
    Variant(
        name="saelens-tuned", title="SAELens's SAE, tuned", module="run_saelens", tuned=True, environment="saelens"
    ),
    Variant(name="authors", title="the authors' procedure", module="run_authors", covers_all=False),
    Variant(name="delphi", title="delphi's cache, activations alone", module="run_delphi", environment="delphi"),
    ENGINE,
)
