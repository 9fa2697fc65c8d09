"""Data sets as they lie on disks: annotations, lists and folders."""
