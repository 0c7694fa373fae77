"""The alarm of an event loop that runs late: told once, with what was not told since, and not for every hiccup."""

import asyncio
import threading

from structlog.testing import capture_logs

from node.live import metrics
from node.live.lag import ALARM_S, QUIET_S, LagAlarm
from node.live.metrics import Metrics, Reading


def alarms(*lags):
    """What is logged of lags, each ``(lag_s, now_s)``."""
    alarm = LagAlarm()
    with capture_logs() as logs:
        for lag_s, now_s in lags:
            alarm.note(lag_s, now_s)
    return [(line["event"], line["lag_s"], line["untold"]) for line in logs]


def test_a_small_lag_is_no_alarm():
    assert alarms((0.0, 0.0), (ALARM_S - 0.001, 1.0)) == []


def test_a_large_one_is_told_at_once_whatever_the_clock_shows():
    for now_s in (0.0, 1e9):
        assert alarms((ALARM_S, now_s)) == [("event loop lags", ALARM_S, 0)]


def test_those_that_follow_soon_are_counted_and_told_with_the_next():
    told = alarms((2.0, 0.0), (3.0, 1.0), (0.1, 2.0), (4.0, QUIET_S - 0.1), (5.0, QUIET_S), (6.0, 2 * QUIET_S))
    assert told == [("event loop lags", 2.0, 0), ("event loop lags", 5.0, 2), ("event loop lags", 6.0, 0)]


async def test_a_loop_that_was_held_up_is_measured_and_told(monkeypatch):
    monkeypatch.setattr(metrics, "_PROBE_S", 0.001)
    monkeypatch.setattr("node.live.lag.ALARM_S", 0.05)
    with capture_logs() as logs:
        probing = asyncio.create_task(Metrics(Reading).probe_lag())
        await asyncio.sleep(0)
        threading.Event().wait(0.1)
        while not logs:
            await asyncio.sleep(0)
        probing.cancel()
    assert logs[0]["lag_s"] >= 0.05
    assert logs[0]["log_level"] == "warning"
