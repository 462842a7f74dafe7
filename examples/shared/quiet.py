"""Import Keras and its backend without what native libraries print while they load.

Import this module first. Settings of TensorFlow alone do not silence its messages about
oneDNN and CUDA, which come before it reads them. If the import fails, all is printed.
"""

import importlib
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _hide_messages_of(function):
    """Call a function with the process' standard error in a file."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        shown = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            function()
        except BaseException:
            hidden.seek(0)
            os.write(shown, hidden.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


_hide_messages_of(lambda: importlib.import_module("keras"))
