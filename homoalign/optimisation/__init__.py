"""Levels into normal equations, and these into steps: the optimisation proper, and how precise its solution is."""
