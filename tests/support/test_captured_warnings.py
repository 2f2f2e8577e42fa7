"""Warnings that are made part of a message, and those of others."""

from __future__ import annotations

import logging
import threading

import pytest

from otel_llm.support.captured_warnings import warnings_of


def test_what_other_threads_say_goes_where_it_would(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library.part")
    with warnings_of("some.library") as said:
        logger.warning("mine")
        logger.info("not worth it")
        thread = threading.Thread(target=logger.warning, args=("theirs",))
        thread.start()
        thread.join()
    logger.warning("after")
    assert said == ["mine"]
    assert caplog.messages == ["theirs", "after"]
