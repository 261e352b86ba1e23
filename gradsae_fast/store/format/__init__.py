"""What the bytes of a store mean: its layout, its codecs, and what a stored value may be; reads and writes nothing."""
