"""Deferral of Ctrl-C to the end of a step, without which JAX loses the weights."""

import functools
import signal
import threading
import types
from collections.abc import Callable
from typing import Any


class InterruptsWait:
    """Defers interrupts during function calls, and raises them afterwards.

    JAX reuses the buffers of the arguments of a step for its results, and Keras removes
    the weights from the model meanwhile. An interrupt before the results are stored
    would leave a model without weights; on other backends, a partial update. A second
    interrupt is raised at once.

    Only announced calls are protected, because after an error the wrapped function may
    stay in a model, where no one raises the deferred interrupts.

    Example:
        >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)
        >>> interrupts = InterruptsWait()
        >>> step = interrupts.around(lambda: signal.raise_signal(signal.SIGINT))
        >>> interrupts.keep_out_of_next()
        >>> step()
        >>> try:
        ...     interrupts.let_in()
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        interrupted
        >>> _ = signal.signal(signal.SIGINT, before)
    """

    def __init__(self) -> None:
        self._waiting = False
        self._announced = False

    def keep_out_of_next(self) -> None:
        """Announce that the next call defers interrupts."""
        self._announced = True

    def around(self, function: Callable) -> Callable:
        """Return a function whose announced calls defer interrupts.

        Args:
            function: Function to protect.
        """

        @functools.wraps(function)
        def undisturbed(*arguments: Any) -> Any:
            announced, self._announced = self._announced, False
            handler = signal.getsignal(signal.SIGINT)
            in_main_thread = threading.current_thread() is threading.main_thread()
            # Python allows handlers only in the main thread; others do not raise.
            if not announced or not in_main_thread or not callable(handler):
                return function(*arguments)

            def wait(number: int, frame: types.FrameType | None) -> None:
                if self._waiting:
                    handler(number, frame)
                self._waiting = True

            signal.signal(signal.SIGINT, wait)
            try:
                return function(*arguments)
            finally:
                signal.signal(signal.SIGINT, handler)

        return undisturbed

    def let_in(self) -> None:
        """Raise the deferred interrupt, if there is one."""
        if self._waiting:
            self._waiting = False
            signal.raise_signal(signal.SIGINT)
