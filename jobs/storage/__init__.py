"""Files at any fsspec URL: what may be read, how it fails, whole or not at all, and who holds the lock."""
