"""A sample of tests/faults: the same tests with few tries (`make test-faults` runs all)."""

from tests.faults.test_archives import *  # noqa: F403
from tests.faults.test_pickles import *  # noqa: F403
from tests.faults.test_readers import *  # noqa: F403
