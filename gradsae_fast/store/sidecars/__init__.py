"""What is made from a complete store and kept beside its segments."""
