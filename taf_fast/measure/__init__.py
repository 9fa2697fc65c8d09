"""Measures of a trained model: scores, robustness to corruptions, spread of attention."""
