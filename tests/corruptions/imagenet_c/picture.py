"""A picture that is the same wherever it is made, and which of its pixels are kept."""

import numpy as np

SEED = 1  # of the draws
KEPT = np.linspace(0, 223, 16).astype(int)  # of the rows and of the columns: 16 x 16 pixels


def picture() -> np.ndarray:
    """uint8 [224,224,3]: grainy fields of colour, a white one and a black one."""
    random = np.random.RandomState(0)
    fields = random.randint(0, 256, (14, 14, 3)).repeat(16, 0).repeat(16, 1)
    fields += random.randint(-30, 31, (224, 224, 3))
    fields[:40, :60] = 255
    fields[100:130, 80:] = 0
    return fields.clip(0, 255).astype(np.uint8)
