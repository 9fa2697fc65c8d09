"""Video data: annotations, manifest, sampling plans and DALI-decoded batches of clips."""

from .errors import DataError
from .formats.annotations import VideoDataset
from .formats.diving48 import read_diving48
from .formats.lists import read_lists
from .formats.read import read_dataset
from .formats.ssv1 import raw_ssv1_classes, read_ssv1
from .formats.ssv2 import read_ssv2
from .formats.tree import read_tree
from .loader import DECODERS, Batch, ClipLoader
from .scanning.manifest import Manifest, scan
from .scanning.manifest_file import read_manifest
from .views.view import ONE_VIEW, EvaluationViews, TrainingView

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
    "read_lists",
    "read_manifest",
    "read_ssv1",
    "read_ssv2",
    "read_tree",
    "scan",
]
