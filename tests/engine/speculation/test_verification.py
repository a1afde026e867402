from hypothesis import given
from hypothesis import strategies as st

from server.engine.speculation.verification import count_agreeing, verify

ids = st.lists(st.integers(0, 3), max_size=8)


@given(ids, ids, st.integers(0, 3))
def test_every_emitted_token_is_the_full_models_choice(drafted: list[int], chosen: list[int], last: int) -> None:
    chosen = [*chosen, last]
    drafted = drafted[: len(chosen) - 1]
    emitted = verify(drafted, chosen, frozenset(), room=100).emitted
    assert emitted == chosen[: len(emitted)]
    assert len(emitted) == count_agreeing(drafted, chosen) + 1


@given(ids, st.integers(1, 10))
def test_nothing_is_emitted_after_a_stop_token_or_beyond_the_room(chosen: list[int], room: int) -> None:
    chosen = [*chosen, 0]
    emitted = verify(chosen[:-1], chosen, frozenset({2}), room).emitted
    assert 1 <= len(emitted) <= room
    assert 2 not in emitted[:-1]


def test_a_whole_draft_earns_a_bonus_and_a_rejection_a_correction() -> None:
    assert verify([5, 6], [5, 6, 7], frozenset(), 9).emitted == [5, 6, 7]
    assert verify([5, 8], [5, 6, 7], frozenset(), 9).emitted == [5, 6]
    assert verify([], [4], frozenset(), 9).emitted == [4]
