"""Counts of a client, for progress and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """What a client has done so far."""

    calls: int = 0
    """Sent to the server."""
    retries: int = 0
    """Of the calls, those after a failed one for the same answer."""
    repairs: int = 0
    outcomes: int = 0
    """New ones, journalled."""
    cached: int = 0
    """Outcomes that the journal had."""
    spent_usd: float = 0.0
    """For outcomes, whether they are new or were in the journal; 0 where the price is not known."""
    in_flight: int = 0
