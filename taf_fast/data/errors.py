"""The error of everything wrong with a data set on disk."""


class DataError(ValueError):
    """A data set cannot be used; the message names the file or clip and says what was expected."""
