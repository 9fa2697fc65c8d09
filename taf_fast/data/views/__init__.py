"""The frames and crops to take from a clip, as pure functions of a seed."""
