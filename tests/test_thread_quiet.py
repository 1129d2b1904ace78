from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from qeff_framework.sources.quiet import quiet_transformers
from qeff_framework.thread_quiet import heard_once, ignored_warning, muted_loggers, swallowed_stderr


def in_another_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_loggers_are_muted_in_one_thread(caplog):
    logger = logging.getLogger("a_library.part")
    with muted_loggers("a_library"):
        logger.warning("hidden")
        logger.error("an error")
        logging.getLogger("a_library_of_another_name").warning("another one")
        in_another_thread(lambda: logger.warning("of another thread"))
        with muted_loggers("something_else"):
            logger.warning("hidden as well")
    logger.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == [
        "an error",
        "another one",
        "of another thread",
        "afterwards",
    ]
    assert logger.level == logging.NOTSET


def test_a_library_that_repeats_itself_is_heard_once(caplog):
    logger = logging.getLogger("a_chatty_library.part")
    logger.warning("before")
    for _ in range(2):
        with heard_once("a_chatty_library"):
            logger.warning("repeated")
            logging.getLogger("another").warning("repeated")
    logger.warning("repeated")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("a_chatty_library.part", "before"),
        ("a_chatty_library.part", "repeated"),
        ("another", "repeated"),
        ("another", "repeated"),
        ("a_chatty_library.part", "repeated"),
    ]


def test_one_kind_of_warning_is_ignored_and_filters_that_others_set_stay():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="known", category=FutureWarning)
        before = list(warnings.filters)
        with ignored_warning("known", FutureWarning):
            warnings.warn("known trouble", FutureWarning, stacklevel=1)
            with pytest.raises(UserWarning):
                warnings.warn("known trouble", UserWarning, stacklevel=1)
            warnings.filterwarnings("ignore", message="set meanwhile")
        assert warnings.filters[1:] == before
        warnings.warn("set meanwhile", UserWarning, stacklevel=1)


def test_stderr_is_swallowed_in_one_thread(capsys):
    with swallowed_stderr():
        print("hidden", file=sys.stderr)
        in_another_thread(lambda: print("of another thread", file=sys.stderr))
        kept = sys.stderr
    print("afterwards", file=sys.stderr)
    print("by who kept the stream", file=kept)
    assert capsys.readouterr().err == "of another thread\nafterwards\nby who kept the stream\n"


def test_progress_bars_come_back_when_the_last_one_is_done(caplog):
    from transformers.utils import logging as library

    level, is_on = library.get_verbosity(), library.is_progress_bar_enabled()
    first, second = quiet_transformers(), quiet_transformers()
    try:
        library.enable_progress_bar()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not library.is_progress_bar_enabled()
        second.__exit__(None, None, None)
        assert library.is_progress_bar_enabled()
        assert library.get_verbosity() == level
    finally:
        (library.enable_progress_bar if is_on else library.disable_progress_bar)()
