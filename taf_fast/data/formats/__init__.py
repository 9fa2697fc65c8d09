"""Data sets as stored on disk: annotations, lists and folders."""
