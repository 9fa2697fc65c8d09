"""Video data: annotations, manifest, sampling plans and DALI-decoded batches of clips."""

from .errors import DataError
from .loader import Batch, ClipLoader
from .manifest import Manifest, scan
from .ssv2 import VideoDataset, read_ssv2

__all__ = ["Batch", "ClipLoader", "DataError", "Manifest", "VideoDataset", "read_ssv2", "scan"]
