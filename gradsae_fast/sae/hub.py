"""Fetching an SAE's files from the Hugging Face hub: the named files of one folder, never a whole repository.

A repository of SAEs can hold terabytes, so exact file names are asked for. The hub's cache and its offline switch
(HF_HUB_OFFLINE) are honoured.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from gradsae_fast.errors import SaeError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.=+-]*)+/?")
TORCH_SUFFIXES = (".pt", ".pth")


def is_hub_id(text: str) -> bool:
    """Whether `text` can be "organisation/repository" or "organisation/repository/folder/in/it"."""
    return HUB_ID.fullmatch(text) is not None


def fetch(hub_id: str, *, files: Sequence[str], revision: str | None = None) -> Path:
    """The local folder that holds those of `files` that the hub has at `hub_id`. Raises SaeError where it has none.

    `hub_id` may also end with one of the file names. A torch file that is none of them is fetched alone, and its own
    path returned: some formats name a file after its layer.
    """
    organisation, name, *inside = PurePosixPath(hub_id).parts
    alone = inside.pop() if inside and inside[-1] not in files and inside[-1].endswith(TORCH_SUFFIXES) else None
    if alone is not None:
        files = [alone]
    elif inside and inside[-1] in files:
        inside.pop()
    repo, folder = f"{organisation}/{name}", PurePosixPath(*inside)
    patterns = [str(folder / file) for file in files]
    try:
        snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # every refusal of the hub, of the network and of the offline cache
        raise SaeError(
            f"there is no local path {hub_id!r}, and the hub repository {repo!r} could not be read "
            f"({type(error).__name__}: {error}); check the spelling, the network, HF_HUB_OFFLINE, and the licence of a "
            "gated repository"
        ) from error
    local = snapshot / folder
    if not any((local / file).is_file() for file in files):
        raise SaeError(
            f"the hub repository {repo!r} holds none of {', '.join(patterns)}; "
            f"give the folder of one SAE, as in '{repo}/folder/of/the/sae', or the torch file of one, as in "
            f"'{repo}/layer0.sae.pt'"
        )
    return local if alone is None else local / alone
