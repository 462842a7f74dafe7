"""Ctrl-C waits for the end of a step, which would else lose the weights on JAX."""

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any


class InterruptsWait:
    """Keeps interrupts out of functions, to be raised after them.

    JAX takes the buffers of a step's arguments for its results, and Keras takes the
    weights out of the model meanwhile. An interrupt before the results are in their
    place would leave a model without weights; on the other backends, half a step.
    A second interrupt does not wait.

    Only a call that was announced keeps them out: an error may leave the function in a
    model whose later calls nobody waits for.

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
        """Announce a call, which an interrupt shall not break."""
        self._announced = True

    def around(self, function: Callable) -> Callable:
        """Return a function that an interrupt does not break where it is announced."""

        @functools.wraps(function)
        def undisturbed(*arguments: Any) -> Any:
            announced, self._announced = self._announced, False
            handler = signal.getsignal(signal.SIGINT)
            in_main_thread = threading.current_thread() is threading.main_thread()
            # Python allows handlers there alone; what is not callable does not raise.
            if not announced or not in_main_thread or not callable(handler):
                return function(*arguments)

            def wait(number, frame):
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
        """Raise the interrupt that waits, if one does."""
        if self._waiting:
            self._waiting = False
            signal.raise_signal(signal.SIGINT)
