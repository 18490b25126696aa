"""Waiting in tests: until it is so, and no longer than the bound."""

import asyncio
import itertools
import subprocess
import sys

import pytest

from tests.support.processes import output_until
from tests.support.until import until, until_async


def test_the_first_value_that_holds_is_returned() -> None:
    numbers = itertools.count()
    assert until(lambda: next(numbers), "four", holds=lambda number: number >= 4, every_s=0) == 4


async def test_a_condition_may_be_a_coroutine_function() -> None:
    numbers = itertools.count()

    async def number() -> int:
        return next(numbers)

    assert await until_async(number, "one", every_s=0) == 1
    assert await until_async(lambda: next(numbers), "four", holds=lambda number: number >= 4, every_s=0) == 4


async def test_what_was_waited_for_and_the_last_value_are_named() -> None:
    message = "waited 0.02 s for: a miracle; last seen: \\[\\]"
    with pytest.raises(AssertionError, match=message):
        until(list, "a miracle", 0.02, every_s=0.001)
    with pytest.raises(AssertionError, match=message):
        await until_async(list, "a miracle", 0.02, every_s=0.001)


async def test_a_condition_that_hangs_is_cancelled() -> None:
    with pytest.raises(AssertionError, match="an answer; last seen: 'nothing yet'"):
        await until_async(asyncio.Event().wait, "an answer", 0.02)


async def test_a_time_limit_of_the_condition_itself_is_its_own_error() -> None:
    async def condition() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await until_async(condition, "an answer")


def printing(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True)


def test_output_is_read_up_to_the_words() -> None:
    with printing("print('one'); print('two words'); print('three')") as process:
        assert output_until(process, "two", 20) == "one\ntwo words\n"


@pytest.mark.parametrize(("code", "timeout_s"), [("print('one')", 20), ("print('one'); import time; time.sleep(60)", 1)])
def test_words_that_do_not_come_are_named_with_the_output(code: str, timeout_s: float) -> None:
    with printing(code) as process, pytest.raises(AssertionError, match=r"no 'two' within .*\none\n"):
        output_until(process, "two", timeout_s)
