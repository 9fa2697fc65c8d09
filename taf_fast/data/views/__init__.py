"""Which frames and crops of a clip to take: pure functions of a seed."""
