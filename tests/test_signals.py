"""The promises of Ctrl-C, SIGTERM and SIGHUP: a clean end, or one at once, and the handlers are handed back."""

import signal
import threading

import pytest

from fashion_study.signals import StopSignals, Terminated


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_ends_at_once(number: signal.Signals) -> None:
    with StopSignals() as stop_signals:
        seen = [stop_signals.received]
        signal.raise_signal(number)
        seen.append(stop_signals.received)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert seen == [None, number]
    assert stop_signals.received is number


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_sighup_is_never_the_second_signal(first: signal.Signals) -> None:
    with StopSignals() as stop_signals:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)

    assert stop_signals.received is first


def test_sighup_stays_ignored_where_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop_signals:
            signal.raise_signal(signal.SIGHUP)
            seen = signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert (stop_signals.received, seen) == (None, signal.SIG_IGN)


def test_the_user_is_told_once_what_the_first_signal_does() -> None:
    said: list[str] = []
    with StopSignals(said.append) as stop_signals:
        asked = [stop_signals.is_stop_requested()]
        signal.raise_signal(signal.SIGINT)
        assert said == []  # Not by the handler, which may have interrupted a write.
        asked += [stop_signals.is_stop_requested(), stop_signals.is_stop_requested()]

    (line,) = said
    assert asked == [False, True, True]
    assert "go back to waiting" in line
    assert "again ends at once" in line


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = {number: signal.getsignal(number) for number in StopSignals.HANDLED}

    with StopSignals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())

    assert {number: signal.getsignal(number) for number in StopSignals.HANDLED} == before


def test_handlers_are_handed_back_after_an_error_too() -> None:
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(ZeroDivisionError), StopSignals():
        _ = 1 / 0

    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with StopSignals() as stop_signals:
            seen.extend([signal.getsignal(signal.SIGINT), stop_signals.received])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

    assert seen == [before, None]


def test_a_second_sigterm_says_that_it_was_one() -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_is_known_behind_a_library_s_ctrl_c(
    number: signal.Signals,
) -> None:
    def as_in_a_call_of_ray() -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt) as end, StopSignals():
        as_in_a_call_of_ray()

    assert isinstance(end.value, Terminated) == (number is signal.SIGTERM)
