"""The views of a clip: the choices in which the official recipes differ."""

from dataclasses import dataclass

SAMPLINGS = ("segments", "shared", "interleaved")
CROPS = ("multi_scale", "random_resized")


@dataclass(frozen=True)
class TrainingView:
    """The random view of a training clip; the default is TSM's for Something-Something.

    ``sampling``: "segments" draws one frame in each segment independently, "shared" takes the same offset in
    all segments (TAM); "interleaved" (TPN) equals "segments" except for two clips in evaluation. ``crop``:
    "multi_scale" or "random_resized" (TPN). ``flip`` mirrors half of the clips, all frames alike, and then
    exchanges the classes of every pair in ``swap`` (GST: left and right); pairs of classes that a data set
    lacks have no effect. ``colour`` is TPN's photometric augmentation.

    Evaluation takes centre crops and uses ``sampling`` only, for short clips and for second clips.
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
        """The class of a view of a clip annotated with ``label``, mirrored or not."""
        if mirrored:
            for a, b in self.swap:
                if label in (a, b):
                    return a + b - label
        return label


@dataclass(frozen=True)
class EvaluationViews:
    """The views of a video whose logits evaluation averages: ``clips`` times ``crops``.

    ``clips``: 1 as in the official validation code, or the 2 of the official test code, by the rule of
    ``sampling``. ``crops``: 1 for the centre, or 3 squares as large as the short side, delivered larger by
    256/224 (TSM's ``--full_res``). Raises ValueError for other numbers.
    """

    crops: int = 1
    clips: int = 1

    def __post_init__(self):
        if self.crops not in (1, 3):
            raise ValueError(f"crops must be 1 or 3, got {self.crops}")
        if self.clips not in (1, 2):
            raise ValueError(f"clips must be 1 or 2, got {self.clips}")

    def __len__(self) -> int:
        return self.clips * self.crops


DEFAULT_VIEW = TrainingView()
ONE_VIEW = EvaluationViews()
