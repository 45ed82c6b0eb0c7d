"""Pairs with a truth, made from photographs: moved, lit and degraded, for the demo and the benchmarks."""
