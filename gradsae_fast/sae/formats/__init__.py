"""One module per published format, and `settings` for the JSON or YAML file that many have.

A format states the `FILES` it is made of, its `LAYOUT` in words and the facts that may be given `BY_HAND`, and has
`matches(path)` and `load(path, ...)`. Where files are named after a layer, `files_of(name)` says which belong together.
"""
