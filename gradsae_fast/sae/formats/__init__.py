"""One module per published format, and `settings` for the JSON file that many of them have.

A format states the `FILES` it is made of, its `LAYOUT` in words and the facts that may be given `BY_HAND`, and has
`matches(path)` and `load(path, ...)`.
"""
