"""What changes a store after it was written: documents dropped, segments compacted, stores merged."""
