"""The full number of tries; the default suite has a sample of the same (tests/test_faults.py)."""

import os

os.environ.setdefault("M3AE_FAULT_TRIES", "2000")
