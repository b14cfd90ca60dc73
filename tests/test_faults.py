"""A sample of tests/faults: the same tests with few tries (`make test-faults` runs all)."""

from tests.faults.test_archives import *  # noqa: F403
from tests.faults.test_corpora import *  # noqa: F403
from tests.faults.test_hub import *  # noqa: F403
from tests.faults.test_images import *  # noqa: F403
from tests.faults.test_integrity import *  # noqa: F403
from tests.faults.test_pages import *  # noqa: F403
from tests.faults.test_pickles import *  # noqa: F403
from tests.faults.test_readers import *  # noqa: F403
from tests.faults.test_yaml import *  # noqa: F403
