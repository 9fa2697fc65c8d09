"""Measure what a training step costs on this machine, compared with a step without this package."""
