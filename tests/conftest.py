"""What holds for all tests."""

import os
import sys
from pathlib import Path

# Messages name the program as it is typed here; with its environment on the PATH that is `tunescope`, on every machine that runs the tests.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
