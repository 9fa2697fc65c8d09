"""Clip metadata gathered before training: frames, sizes, codecs, checksums and defects."""
