"""From templates to the bytes of pages: every value escaped, every page below its limit, nothing loaded or run.

A page carries its stylesheet, named by its digest in the page's content-security policy; the policy forbids everything
else, so that a page would stay inert even if some text came through unescaped.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradsae_fast.errors import StoreError
from gradsae_fast.report import numbers
from gradsae_fast.report.palette import DARK, LIGHT, variables
from gradsae_fast.visible import cut, visible

PAGE_BYTES = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of each thing a page shows at most; pages say what they leave out."""

    contexts: int  # in each list of a latent
    rows: int  # of metadata
    characters: int  # of a key, label or value
    text_bytes: int  # of a document's marked-up text

    def halved(self) -> "Limits":
        """Return half of everything, at least one."""
        return Limits(
            contexts=max(1, self.contexts // 2),
            rows=max(1, self.rows // 2),
            characters=max(1, self.characters // 2),
            text_bytes=max(1, self.text_bytes // 2),
        )


class Pages:
    """Renders the templates of this package.

    Args:
        shared: what every page may use.
    """

    def __init__(self, shared: Mapping[str, Any]) -> None:
        environment = Environment(
            loader=PackageLoader("gradsae_fast.report"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "cut": cut,
            "number": numbers.number,
            "short": numbers.short,
            "signed": numbers.signed,
            "percent": numbers.percent,
            "count": numbers.count,
            "maybe": lambda value: "undefined" if value is None else numbers.number(value),
        }
        style = environment.get_template("style.css").render(light=variables(LIGHT), dark=variables(DARK))
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        environment.globals |= {**shared, "style": Markup(style), "style_digest": digest}
        self._environment = environment

    def render(self, template: str, **values: Any) -> bytes:
        """Return a page, whatever its size."""
        return self._environment.get_template(template).render(values).encode()

    def fit(self, template: str, limits: Limits, values: Callable[[Limits], Mapping[str, Any]]) -> bytes:
        """Return a page of at most PAGE_BYTES, made of what `values` gives for the widest limits that fit.

        Raises:
            StoreError: even the narrowest page is too large.
        """
        while True:
            page = self.render(template, limits=limits, **values(limits))
            if len(page) <= PAGE_BYTES:
                return page
            if limits == limits.halved():
                raise StoreError(
                    f"a page made of {template} has {len(page)} bytes at the least; expected at most {PAGE_BYTES}: "
                    "compare fewer groups"
                )
            limits = limits.halved()


def _shown(value: Any) -> Any:
    """What a template writes: text that nothing has looked at before is made visible, whichever way it came."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
