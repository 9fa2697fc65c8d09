"""Writing synthetic clips and their annotations in the layout of each real data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from taf_fast.data.formats.ssv2 import label_text
from taf_fast.parsing import to_json

FPS = 12


@dataclass(frozen=True)
class Written:
    """A clip on disk: its id, the template of its class, the object it shows ("red disc") and its length."""

    id: str
    template: str
    object: str
    frames: int


@dataclass(frozen=True)
class Format:
    """A layout: the folder of the clips, and the functions that write a clip and the annotations.

    ``encode(path, images)`` writes uint8 ``[n, height, width, 3]`` to ``path``, adding the suffix;
    ``annotate(root, templates, splits)`` writes the files of the classes and of every split.
    """

    folder: str
    encode: Callable[[Path, np.ndarray], None]
    annotate: Callable[[Path, list[str], dict[str, list[Written]]], None]


def _encode_ssv1(path: Path, images: np.ndarray) -> None:
    path.mkdir()
    for number, image in enumerate(images, 1):
        Image.fromarray(image).save(path / f"{number:05d}.jpg", quality=90)


def _annotate_ssv1(root: Path, templates: list[str], splits: dict[str, list[Written]]) -> None:
    # Like the real file, not in alphabetical order.
    _write_lines(root, "labels", [label_text(template) for template in templates])
    for split, clips in splits.items():
        _write_lines(root, split, [f"{clip.id};{label_text(clip.template)}" for clip in clips])


def _encode_ssv2(path: Path, images: np.ndarray) -> None:
    # The fastest settings of VP9.
    options = {"deadline": "realtime", "cpu-used": "8", "crf": "25", "b": "0"}
    _encode_video(path.with_suffix(".webm"), images, "libvpx-vp9", options)


def _annotate_ssv2(root: Path, templates: list[str], splits: dict[str, list[Written]]) -> None:
    prefix = "something-something-v2"
    names = sorted(map(label_text, templates))
    _write_json(root / f"{prefix}-labels.json", {name: str(index) for index, name in enumerate(names)})
    for split, clips in splits.items():
        entries = [
            {
                "id": clip.id,
                "label": clip.template.replace("[something]", f"a {clip.object}").lower(),
                "template": clip.template,
                "placeholders": [f"a {clip.object}"],
            }
            for clip in clips
        ]
        _write_json(root / f"{prefix}-{split}.json", entries)


def _encode_diving48(path: Path, images: np.ndarray) -> None:
    # The lookahead of x264's slower presets does not always encode the same pictures to the same bits.
    codec, options = "libx264", {"preset": "ultrafast", "crf": "18"}
    # Some builds of FFmpeg lack x264.
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}
    _encode_video(path.with_suffix(".mp4"), images, codec, options)


def _annotate_diving48(root: Path, templates: list[str], splits: dict[str, list[Written]]) -> None:
    # A class has four attributes: the first three words and the rest.
    vocabulary = {template: label_text(template).split(" ", 3) for template in sorted(templates)}
    index = {template: label for label, template in enumerate(vocabulary)}
    _write_json(root / "Diving48_vocab.json", list(vocabulary.values()))
    for split, name in (("train", "train"), ("validation", "test")):
        entries = [
            {
                "vid_name": clip.id,
                "label": index[clip.template],
                "start_frame": 0,
                "end_frame": clip.frames,
            }
            for clip in splits[split]
        ]
        _write_json(root / f"Diving48_V2_{name}.json", entries)


FORMATS = {
    "ssv1": Format("20bn-something-something-v1", _encode_ssv1, _annotate_ssv1),
    "ssv2": Format("20bn-something-something-v2", _encode_ssv2, _annotate_ssv2),
    "diving48": Format("rgb", _encode_diving48, _annotate_diving48),
}


def _encode_video(path: Path, images: np.ndarray, codec: str, options: dict[str, str]) -> None:
    # bitexact keeps random identifiers out of the container.
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _write_lines(root: Path, name: str, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    (root / f"something-something-v1-{name}.csv").write_text(text, encoding="utf-8")


def _write_json(path: Path, content: object) -> None:
    path.write_text(to_json(content, indent=1), encoding="utf-8")
