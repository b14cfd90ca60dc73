"""The hub: whether it can be reached, asked once."""

import functools
import logging

from m3ae.files import one_line

log = logging.getLogger(__name__)


@functools.cache
def ask_hub() -> None:
    """Call it before anything is fetched: where the hub does not answer, only its cache counts.

    The library would ask six times for every file, for a minute, and say so each time.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # of whatever client the library has
        constants.HF_HUB_OFFLINE = True
        why = one_line(error) or type(error).__name__
        log.warning("%s cannot be reached (%s): only its cache is read", constants.ENDPOINT, why)
