"""Plans and order: what they depend on, and which part each rank takes."""

from hypothesis import given
from hypothesis import strategies as st

from taf_fast.data.clip import Clip, Size
from taf_fast.data.views import planner


def test_plans_depend_on_seed_epoch_and_position_only():
    clip = Clip("1", None, 0, frames=60, size=Size(240, 427))

    def key(position=3, seed=1, epoch=2, train=True):
        plan = planner.plan(clip, position, 8, 224, seed, epoch, train)
        return (*plan.frames.tolist(), *plan.box)

    assert key() == key()
    assert len({key(), key(position=4), key(seed=2), key(epoch=3)}) == 4
    assert key(train=False) == key(position=4, seed=2, epoch=3, train=False)


sizes = {"n": st.integers(0, 200), "world_size": st.integers(1, 5), "batch_size": st.integers(1, 9)}


@given(**sizes, shuffle=st.booleans(), drop_last=st.booleans(), seed=st.integers(0, 99))
def test_ranks_are_disjoint_and_have_equal_steps(n, world_size, batch_size, shuffle, drop_last, seed):
    ranks = [
        planner.epoch_order(n, seed, 1, shuffle, rank, world_size, batch_size, drop_last)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    taken = [int(i) for batches in ranks for batch in batches for i in batch]
    assert len(taken) == len(set(taken))
    together = world_size * batch_size
    if not drop_last:
        assert sorted(taken) == list(range(n))
    elif n >= together:
        assert len(taken) == n - n % together
        assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    else:
        assert len(taken) == n - n % world_size


def test_order_is_shuffled_by_seed_and_epoch():
    def order(seed=0, epoch=0, shuffle=True):
        return [
            int(i) for batch in planner.epoch_order(50, seed, epoch, shuffle, 0, 1, 8, False) for i in batch
        ]

    assert order() == order()
    assert order() != order(seed=1) and order() != order(epoch=1)
    assert order(shuffle=False) == list(range(50))
