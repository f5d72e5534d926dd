"""A server's states. Our choice throughout; time is an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcpmux
from mcpmux import Bug, Deaths, Moment, State, next_state


@pytest.mark.parametrize(
    ("events", "ends"),
    [
        ([Moment.USE, Moment.UP], State.READY),
        ([Moment.USE, Moment.UP, Moment.GONE], State.BACKOFF),
        ([Moment.USE, Moment.UP, Moment.GONE, Moment.DUE, Moment.USE, Moment.UP], State.READY),
        ([Moment.USE, Moment.GONE, Moment.DUE], State.IDLE),
        ([Moment.USE, Moment.GAVE_UP, Moment.DUE, Moment.USE], State.STARTING),
        ([Moment.USE, Moment.STOP, Moment.ENDED, Moment.USE], State.STARTING),
        ([Moment.USE, Moment.UP, Moment.STOP, Moment.ENDED], State.STOPPED),
        ([Moment.USE, Moment.STOP, Moment.GONE, Moment.DUE], State.IDLE),
        ([Moment.USE, Moment.STOP, Moment.GAVE_UP], State.FAILED),
    ],
)
def test_lives(events: list[Moment], ends: State):
    state = State.IDLE
    for event in events:
        state = next_state(state, event)
    assert state is ends


def test_a_missing_transition_names_state_and_event():
    with pytest.raises(Bug, match="a server that is idle cannot be one that answered its handshake"):
        next_state(State.IDLE, Moment.UP)


def test_every_state_can_be_reached_and_left():
    assert set(mcpmux.TRANSITIONS.values()) | {State.IDLE} == set(State)
    assert {state for state, _ in mcpmux.TRANSITIONS} == set(State)


def test_a_server_rests_longer_each_time_and_is_given_up_after_five_deaths_in_a_minute():
    deaths = Deaths()
    assert [deaths.count(now, 0.0) for now in (0, 1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0, None]


def test_deaths_that_are_far_apart_count_as_first_ones():
    deaths = Deaths()
    assert [deaths.count(now, 0.0) for now in (0, 61, 122, 183, 244, 305)] == [0.5] * 6


def test_after_it_was_given_up_a_server_gets_five_more_tries():
    deaths = Deaths()
    rests = [deaths.count(0, 0.0) for _ in range(6)]
    assert rests == [0.5, 1.0, 2.0, 4.0, None, 0.5]


def test_a_server_that_dies_again_and_again_but_not_too_fast_rests_up_to_half_a_minute():
    deaths, now, rests = Deaths(), 0.0, []
    for _ in range(10):
        rests.append(deaths.count(now, 0.0))
        now += 20 + (rests[-1] or 0)
    assert rests == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


@given(st.lists(st.floats(0, 100), max_size=20), st.floats(0, 1, exclude_max=True))
def test_a_rest_is_bounded_and_spread_over_half_of_itself(gaps: list[float], chance: float):
    now, plain, spread = 0.0, Deaths(), Deaths()
    for gap in gaps:
        now += gap
        whole, part = plain.count(now, 0.0), spread.count(now, chance)
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert whole / 2 <= part <= whole <= mcpmux.BACKOFF_MOST
