"""TPN's photometric augmentation as one affine colour map per frame."""

import numpy as np

# Principal components of ImageNet's colours (RGB, 0..255): standard deviations, and directions in columns.
DEVIATIONS = np.array([55.46, 4.794, 1.148])
DIRECTIONS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
GRAY = np.array([0.299, 0.587, 0.114])
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
FROM_YIQ = np.array([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.107, 1.705]])


def draw_colours(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Random maps (R, G, B, 1) -> (R, G, B) on 0..255 for the frames of a clip, float32 ``[T, 3, 4]``.

    As in the official code, the amounts of brightness (+-32), contrast, saturation (both 0.6 to 1.4) and hue
    (any angle) are drawn once per clip. Which of them apply (each with probability 0.5), and whether contrast
    comes before the other two or after them, is drawn for every frame. The noise along the principal
    components is drawn once per clip. The official code computes saturation and hue on BGR pictures with
    weights meant for RGB; this function does the same.
    """
    brightness = _map(offset=rng.uniform(-32, 32))
    contrast = _map(np.eye(3) * rng.uniform(0.6, 1.4))
    share = rng.uniform(0.6, 1.4)
    saturation = _map(share * np.eye(3) + (1 - share) * GRAY)
    angle = rng.uniform(-18, 18) * np.pi
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = _map(FROM_YIQ @ turn @ TO_YIQ)

    maps = np.empty((num_frames, 3, 4))
    for frame in range(num_frames):
        whole = brightness if rng.random() < 0.5 else np.eye(4)
        order = [contrast, saturation, hue] if rng.random() < 0.5 else [saturation, hue, contrast]
        for step in order:
            if rng.random() < 0.5:
                whole = step @ whole
        # From BGR to RGB, on both sides.
        maps[frame] = whole[[2, 1, 0]][:, [2, 1, 0, 3]]
    maps[:, :, 3] += DIRECTIONS @ (rng.normal(0, 0.1, 3) * DEVIATIONS)
    return maps.astype(np.float32)


def apply_colours(frames: np.ndarray, maps: np.ndarray) -> None:
    """Maps the colours of uint8 ``[T, H, W, 3]`` by ``maps`` ``[T, 3, 4]``, in place.

    The official code neither rounds nor clips: its frames stay floats and may leave 0..255. Here the result
    is rounded and clipped once, at the end.
    """
    for frame, colours in zip(frames, maps, strict=True):
        red, green, blue = np.moveaxis(frame, 2, 0).astype(np.float32)
        for channel, (r, g, b, offset) in enumerate(colours):
            value = red * r + green * g + blue * b + offset
            frame[..., channel] = np.clip(np.rint(value), 0, 255)


def _map(matrix: np.ndarray | None = None, offset: float = 0.0) -> np.ndarray:
    """The 4x4 matrix of x -> matrix @ x + offset."""
    whole = np.eye(4)
    whole[:3, :3] = np.eye(3) if matrix is None else matrix
    whole[:3, 3] = offset
    return whole
