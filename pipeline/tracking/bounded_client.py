"""An MLflow client that gives up in time.

The timeouts of HTTP libraries count silence: a server that sends a byte a second keeps them waiting for
ever. So every call runs in a thread of its own, and whoever waits for it waits for so long and no longer.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SLOWEST_UPLOAD = 1e6
"""Bytes per second at which an artifact may be taken before its server counts as one that hangs."""


class NoAnswerError(TimeoutError):
    """A store that has not answered in time; the message is the reason within a sentence."""


class BoundedClient:
    """An ``MlflowClient``, call by call with an end; used by one thread at a time.

    After the first call that was not answered in time all others fail at once: the store hangs.

    Args:
        connect: makes the client.
        patience_s: how long a call may take, seconds. The upload of an artifact gets more.

    Raises:
        NoAnswerError: the client could not be made in time.
    """

    def __init__(self, connect: Callable[[], Any], patience_s: float) -> None:
        self._patience_s = patience_s
        self._late = ""
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]
        self._calls = queue.SimpleQueue()
        # a daemon: a call that hangs keeps no process from its end
        threading.Thread(target=self._serve, name="mlflow-calls", daemon=True).start()
        try:
            self._client = self._bounded(connect, patience_s)
        except BaseException:
            self.close()
            raise

    def __getattr__(self, name: str) -> Any:
        """Return a method of the client, with an end, or another attribute of it."""
        found = getattr(self._client, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._bounded(partial(found, *args, **kwargs), self._patience_s)

    def log_artifact(self, run_id: str, path: str, place: str | None = None) -> None:
        """Upload a file to a run; it may take longer if the file is large."""
        more = Path(path).stat().st_size / SLOWEST_UPLOAD
        self._bounded(partial(self._client.log_artifact, run_id, path, place), self._patience_s + more)

    def close(self) -> None:
        """End the thread, once it has nothing more to wait for."""
        self._calls.put(None)

    def _bounded(self, call: Callable[[], Any], patience_s: float) -> Any:
        if self._late:
            raise NoAnswerError(self._late)
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((call, ended))
        try:
            result, error = ended.get(timeout=patience_s)
        except queue.Empty:
            self._late = f"no answer within {patience_s:.0f} s"
            raise NoAnswerError(self._late) from None
        if error is not None:
            raise error
        return result

    def _serve(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, ended = asked
            try:
                ended.put((call(), None))
            except BaseException as error:  # noqa: BLE001  whoever waits raises it
                ended.put((None, error))
