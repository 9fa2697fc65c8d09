"""How training clips are varied: the choices in which the official recipes differ."""

from dataclasses import dataclass

SAMPLINGS = ("segments", "shared")
CROPS = ("multi_scale", "random_resized")


@dataclass(frozen=True)
class TrainingView:
    """The random view of a training clip; the default is TSM's for Something-Something.

    ``sampling``: "segments" draws one frame in each segment on its own, "shared" the same place in all of
    them (TAM). ``crop``: "multi_scale" or "random_resized" (TPN). ``flip`` mirrors half of the clips, all
    frames alike, and then exchanges the classes of every pair in ``swap`` (GST: left and right); pairs of
    classes that a data set lacks do nothing. ``colour`` is TPN's photometric augmentation.

    Evaluation takes the centres and looks at ``sampling`` only, for clips no longer than their samples.
    Raises ValueError for impossible values.
    """

    sampling: str = "segments"
    crop: str = "multi_scale"
    flip: bool = False
    swap: tuple[tuple[int, int], ...] = ()
    colour: bool = False

    def __post_init__(self):
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}")
        classes = [label for pair in self.swap for label in pair]
        pairs = all(len(pair) == 2 for pair in self.swap)
        if not pairs or len(set(classes)) < len(classes) or any(label < 0 for label in classes):
            raise ValueError(f"swap must be pairs of classes, no class in two of them, got {self.swap}")
        if self.swap and not self.flip:
            raise ValueError("swap exchanges the labels of mirrored clips: it needs flip")

    def label(self, label: int, mirrored: bool) -> int:
        """The class of a clip annotated with ``label`` when it is, or is not, mirrored."""
        if mirrored:
            for a, b in self.swap:
                if label in (a, b):
                    return a + b - label
        return label


DEFAULT_VIEW = TrainingView()
