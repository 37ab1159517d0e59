"""Eval mode for the length of a call, fit for threads: what is in eval mode already is not touched at all.

A network in training mode is switched by the first call that enters and switched back by the last one that leaves,
so that calls side by side never see it half switched.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Switchable(Protocol):
    """The part of nn.Module that is needed here."""

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...


@dataclass
class _Lease:
    """The training flags to put back, and how many calls rely on eval mode until then."""

    flags: list[tuple[nn.Module, bool]]
    users: int = 0


_lock = threading.Lock()
_leases: weakref.WeakKeyDictionary[Switchable, _Lease] = weakref.WeakKeyDictionary()


@contextmanager
def evaluation_mode(network: Switchable) -> Iterator[None]:
    """Within, every module of the network is in eval mode; after, each has the training flag it had."""
    lease = _enter(network)
    try:
        yield
    finally:
        if lease is not None:
            _leave(network, lease)


def _enter(network: Switchable) -> _Lease | None:
    with _lock:
        lease = _leases.get(network)
        if lease is None:
            flags = [(module, module.training) for module in network.modules()]
            if not any(training for _, training in flags):
                return None
            lease = _leases[network] = _Lease(flags)
            network.eval()
        lease.users += 1
        return lease


def _leave(network: Switchable, lease: _Lease) -> None:
    with _lock:
        lease.users -= 1
        if lease.users == 0:
            del _leases[network]
            for module, training in lease.flags:
                module.training = training
