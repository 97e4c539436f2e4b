"""Signals stop a process where it leaves nothing incomplete."""

from __future__ import annotations

import signal

import pytest

from salience_detr.utils import signals
from salience_detr.utils.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_and_the_earlier_handler_returns(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_deferred_signal_interrupts_at_the_end_of_the_block():
    steps = []
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops:
        with stops.deferred():
            signal.raise_signal(signal.SIGTERM)
            steps.append("written")
        steps.append("next")
    assert steps == ["written"]


def test_a_second_signal_ends_even_a_deferred_block():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stops, stops.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal did nothing")


def test_signals_within_the_patience_are_one_and_later_ones_interrupt(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])

    with StopSignals(defer=True, patience=3, announcement="saving") as stops:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # passed on by a launcher
        assert stops.received == signal.SIGINT and "SIGINT: saving" in caplog.text
        now[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_are_ignored_when_the_work_is_done():
    with StopSignals() as stops:
        stops.ignore()
        signal.raise_signal(signal.SIGTERM)
