"""A metadata server that breaks off is one that says nothing: the watch goes on."""

import http.client
import urllib.request
from typing import Any

import pytest

from experiments.cluster.preemption_watch import Cloud


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        http.client.RemoteDisconnected("gone"),
        http.client.IncompleteRead(b""),
        TimeoutError("slow"),
    ],
)
def test_a_connection_that_breaks_is_no_answer(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", broken)
    assert Cloud().seconds_left() is None
    assert not Cloud().is_spot()
