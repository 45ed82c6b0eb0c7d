"""Where a pair starts: prior or identity, an exhaustive search, local features."""
