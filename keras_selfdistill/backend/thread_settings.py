"""Settings of Keras that each thread has for itself."""

from collections.abc import Callable

import keras


def thread_settings() -> Callable[[], None]:
    """Return a function that gives another thread the settings of this one.

    Keras keeps the dtype policy, the distribution and the choice of flash attention
    per thread: a new thread has the defaults.

    Example:
        >>> import threading
        >>> adopt, found = thread_settings(), []
        >>> def run():
        ...     adopt()
        ...     found.append(keras.config.dtype_policy() == policy)
        >>> policy = keras.config.dtype_policy()
        >>> thread = threading.Thread(target=run)
        >>> thread.start()
        >>> thread.join()
        >>> found
        [True]
    """
    policy = keras.config.dtype_policy()
    distribution = keras.distribution.distribution()
    flash = keras.config.is_flash_attention_enabled()

    def adopt() -> None:
        keras.config.set_dtype_policy(policy)
        keras.distribution.set_distribution(distribution)
        if flash is not None:
            enable, disable = (
                keras.config.enable_flash_attention,
                keras.config.disable_flash_attention,
            )
            (enable if flash else disable)()

    return adopt
