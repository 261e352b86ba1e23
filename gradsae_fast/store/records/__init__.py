"""The small files that say what is in a store: the run, its commits, generations and revisions."""
