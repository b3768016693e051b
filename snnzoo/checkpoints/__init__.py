"""Weights: where they come from, how their keys are laid out, how they are read and written safely."""
