"""What TensorBoard reads of a run."""


def scalars(folder) -> dict[tuple[str, int], tuple[float, float]]:
    """(name, step) -> value and time, from the only event file of a run; every step has to be there once."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    (file,) = folder.glob("*tfevents*")
    read = EventAccumulator(str(file), size_guidance={SCALARS: 0}).Reload()
    events = [(tag, event) for tag in read.Tags()[SCALARS] for event in read.Scalars(tag)]
    found = {(tag, event.step): (event.value, event.wall_time) for tag, event in events}
    assert len(found) == len(events)
    return found
