"""One module per published format: `FILES` it is made of, `LAYOUT` in words, `matches(path)` and `load(path, ...)`."""
