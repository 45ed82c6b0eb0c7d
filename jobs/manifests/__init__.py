"""Manifests and their rows, checked; the plan that divides them into shards."""
