"""The error of everything wrong with a data set on disk."""


class DataError(ValueError):
    """A data set cannot be used; the message names the file or clip and says what was expected."""


def different_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """The defect of frames that are not of the (height, width) the scan saw."""
    return f"has frames of {found[1]} x {found[0]} pixels, expected {expected[1]} x {expected[0]}"
