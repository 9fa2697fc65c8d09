"""Temporal Adversarial Fine-tuning (TAF, IJCAI 2023) for video models."""
