"""The numbers of a variant, as sparse as they are: one entry for each token and each latent that is active on it.

Letters: Z entries, N tokens of the workload, C latents, B documents of a batch, T positions of a batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.workload import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Active latents of tokens, in any order."""

    token_Z: Array  # int64, position among the N tokens
    latent_Z: Array  # int64
    activation_Z: Array  # float32
    influence_Z: Array | None  # float32; None where a variant has activations alone

    @classmethod
    def load(cls, path: Path) -> "Pairs":
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(
                token_Z=arrays["token"],
                latent_Z=arrays["latent"],
                activation_Z=arrays["activation"],
                influence_Z=arrays.get("influence"),
            )

    def save(self, path: Path) -> None:
        """Write the columns as an npz file."""
        columns = {"token": self.token_Z, "latent": self.latent_Z, "activation": self.activation_Z}
        if self.influence_Z is not None:
            columns["influence"] = self.influence_Z
        np.savez(path, allow_pickle=False, **columns)

    @property
    def key_Z(self) -> Array:
        """One number for each token and latent."""
        return (self.token_Z.astype(np.int64) << 32) | self.latent_Z.astype(np.int64)

    def at(self, kept_N: Array) -> "Pairs":
        """The entries of some tokens, bool [N]."""
        kept_Z = kept_N[self.token_Z]
        influence_Z = None if self.influence_Z is None else self.influence_Z[kept_Z]
        return Pairs(
            token_Z=self.token_Z[kept_Z],
            latent_Z=self.latent_Z[kept_Z],
            activation_Z=self.activation_Z[kept_Z],
            influence_Z=influence_Z,
        )


class Coo:
    """What a script collects batch by batch, and keeps in one file of torch: four tensors, 24 bytes an entry."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, token_BT: Tensor, place_Z3: Tensor, activation_Z: Tensor, influence_Z: Tensor) -> None:
        """Entries of one batch; `place_Z3` is their (row, position, latent)."""
        row_Z, position_Z, latent_Z = place_Z3.unbind(1)
        self.parts.append((token_BT[row_Z, position_Z], latent_Z.clone(), activation_Z, influence_Z))

    def save(self, folder: Path) -> None:
        """Write the file."""
        folder.mkdir(parents=True, exist_ok=True)
        names = ("token", "latent", "activation", "influence")
        torch.save(dict(zip(names, self.columns(), strict=True)), folder / "influences.pt")

    def columns(self) -> tuple[Tensor, ...]:
        """Token, latent, activation and influence of all entries."""
        return tuple(torch.cat(column) for column in zip(*self.parts, strict=True))

    def pairs(self) -> Pairs:
        """The same for the comparison."""
        token_Z, latent_Z, activation_Z, influence_Z = (column.numpy() for column in self.columns())
        return Pairs(token_Z=token_Z, latent_Z=latent_Z, activation_Z=activation_Z, influence_Z=influence_Z)
