"""Video data: annotations, scans, sampling plans, and batches of clips decoded by PyAV, PIL or DALI."""

from taf_fast.data.clip import Manifest, VideoDataset
from taf_fast.data.cpus import usable_cpus
from taf_fast.data.formats.diving48 import read_diving48
from taf_fast.data.formats.lists import read_lists
from taf_fast.data.formats.read import read_dataset
from taf_fast.data.formats.ssv1 import raw_ssv1_classes, read_ssv1
from taf_fast.data.formats.ssv2 import read_ssv2
from taf_fast.data.formats.tree import read_files, read_tree
from taf_fast.data.loader import DECODERS, Batch, ClipLoader
from taf_fast.data.scanning.manifest import scan
from taf_fast.data.scanning.manifest_file import read_manifest
from taf_fast.data.views.view import ONE_VIEW, EvaluationViews, TrainingView
from taf_fast.errors import DataError

__all__ = [
    "DECODERS",
    "ONE_VIEW",
    "Batch",
    "ClipLoader",
    "DataError",
    "EvaluationViews",
    "Manifest",
    "TrainingView",
    "VideoDataset",
    "raw_ssv1_classes",
    "read_dataset",
    "read_diving48",
    "read_files",
    "read_lists",
    "read_manifest",
    "read_ssv1",
    "read_ssv2",
    "read_tree",
    "scan",
    "usable_cpus",
]
