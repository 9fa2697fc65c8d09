"""Video data: annotations, manifest, sampling plans and DALI-decoded batches of clips."""

from .annotations import VideoDataset
from .diving48 import read_diving48
from .errors import DataError
from .loader import Batch, ClipLoader
from .manifest import Manifest, scan
from .read import read_dataset
from .ssv1 import raw_ssv1_classes, read_ssv1
from .ssv2 import read_ssv2
from .view import TrainingView

__all__ = [
    "Batch",
    "ClipLoader",
    "DataError",
    "Manifest",
    "TrainingView",
    "VideoDataset",
    "raw_ssv1_classes",
    "read_dataset",
    "read_diving48",
    "read_ssv1",
    "read_ssv2",
    "scan",
]
