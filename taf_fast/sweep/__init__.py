"""Ablations: many runs that differ in few values."""
