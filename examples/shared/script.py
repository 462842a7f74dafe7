"""How every example runs: of wrong flags, the message is shown, and nothing else."""

import sys
from collections.abc import Callable, Sequence

from absl import app


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and runs a program.

    Absl by itself shows the help of all flags before the message of a `UsageError`,
    which many flags push out of sight.

    Args:
        main: What the program does; it takes the arguments that are no flags.
    """

    def told(arguments):
        try:
            main(arguments)
        except app.UsageError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exitcode)

    app.run(told)
