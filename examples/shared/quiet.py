"""Import Keras and its backend without what native libraries print while they load.

Import this module first. Settings of TensorFlow alone do not silence its messages about
oneDNN and CUDA, which come before it reads them. If the import fails, all is printed.
"""

import importlib
import importlib.util
import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_quietly(name):
    """Import a module, with the process' standard error in a file."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        shown = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            importlib.import_module(name)
        except BaseException:
            hidden.seek(0)
            os.write(shown, hidden.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


import_quietly("keras")
if importlib.util.find_spec("tensorflow"):
    # `keras.utils.set_random_seed` imports it on every backend.
    import_quietly("tensorflow")
