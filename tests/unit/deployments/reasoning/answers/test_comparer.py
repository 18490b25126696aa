"""The process that compares answers: what it is asked stops nothing, whatever it does."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from deployments.reasoning.answers.comparer import KEPT, QUEUE, Comparer, Process, Undecided
from deployments.reasoning.answers.worker import MEMORY_BYTES
from deployments.reasoning.answers.written import text_key
from deployments.reasoning.equality import key
from tests.support.paths import ROOT
from tests.support.until import until

STAND_INS = "tests.support.stand_ins"
PATIENT_S = 60.0
"""A limit that a busy machine does not reach."""


@pytest.fixture
def process() -> Iterator[Process]:
    with contextlib.closing(Process(STAND_INS, PATIENT_S)) as one:
        yield one


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_nothing_runs_before_the_first_request_and_after_the_end(process: Process) -> None:
    assert process.pid is None
    assert process.ask("give", 5) == 5
    child, parent = process.ask("pids")
    assert parent == process.pid
    assert child != parent
    process.close()
    assert process.pid is None
    until(lambda: gone(child) and gone(parent), "both processes to end")


@pytest.mark.parametrize(("how", "value"), [("sleep", 600), ("spin", 600)])
def test_what_takes_too_long_is_killed_and_the_next_request_is_answered(how: str, value: float) -> None:
    with contextlib.closing(Process(STAND_INS, 0.5)) as process:
        for _ in range(2):
            with pytest.raises(Undecided, match=r"not done after 0\.5 s|died"):  # by its CPU limit, where this process was late
                process.ask(how, value)
        first = process.pid
        with contextlib.suppress(Undecided):  # where half a second is short
            assert process.ask("give", 5) == 5
        assert process.pid == first, "only the child was replaced"


def test_what_takes_more_cpu_than_it_may_ends_without_being_waited_for(process: Process) -> None:
    with pytest.raises(Undecided, match="died"):
        process.ask("spin", 600)
    assert process.ask("give", 5) == 5


def test_what_takes_more_memory_than_it_may_fails(process: Process) -> None:
    with pytest.raises(Undecided, match="MemoryError"):
        process.ask("allocate", 2 * MEMORY_BYTES)
    assert process.ask("allocate", 1 << 20) == 1 << 20


@pytest.mark.parametrize(("how", "why"), [(["die"], "died"), (["fail", "so"], "ValueError: so"), (["no_such_function"], "no_such")])
def test_what_dies_or_raises_is_undecided(process: Process, how: list[str], why: str) -> None:
    with pytest.raises(Undecided, match=why):
        process.ask(*how)
    assert process.ask("give", 5) == 5


def test_killed_processes_are_replaced(process: Process) -> None:
    child, parent = process.ask("pids")
    os.kill(child, signal.SIGKILL)
    until(lambda: gone(child), "the child's end")
    with contextlib.suppress(Undecided):  # a request that finds the child dead is not repeated: it may have been the cause
        process.ask("give", 5)
    assert process.ask("give", 5) == 5
    assert process.pid == parent
    os.kill(parent, signal.SIGKILL)
    until(lambda: gone(parent), "the parent's end")
    assert process.ask("give", 5) == 5
    assert process.pid != parent


def test_one_that_does_not_start_is_not_tried_at_once_again() -> None:
    with contextlib.closing(Process("tests.support.no_such_module", PATIENT_S)) as process:
        with pytest.raises(Undecided, match="did not start"):
            process.ask("key", 1)
        with pytest.raises(Undecided, match="has just failed to start"):
            process.ask("key", 1)


def test_they_end_with_the_process_that_started_them() -> None:
    code = (
        "from deployments.reasoning.answers.comparer import Process; import sys, time\n"
        f"process = Process({STAND_INS!r}, {PATIENT_S}); print(*process.ask('pids'), flush=True); process.ask('sleep', 600)"
    )
    ingress = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert ingress.stdout is not None
    pids = [int(word) for word in ingress.stdout.readline().split()]
    assert len(pids) == 2
    ingress.kill()
    ingress.communicate()
    until(lambda: all(map(gone, pids)), "both processes to end")


@pytest.fixture
def comparer() -> Iterator[Comparer]:
    one = Comparer(Process(wall_s=PATIENT_S))
    yield one
    one.close()


async def test_keys_are_those_of_the_equality(comparer: Comparer) -> None:
    comparer.prepare()
    answers = ["1/2", "0.5", r"\sum_{k=1}^{3} k", "x" * 3000, "\ud800"]
    assert [await comparer.key(answer) for answer in answers] == [key(answer) for answer in answers]


class Gate(Process):
    """Answers when it is opened, or never decides."""

    def __init__(self, *, decides: bool = True) -> None:
        super().__init__()
        self.opened, self.asked, self._decides = threading.Event(), 0, decides

    def ask(self, function: str, *arguments: str) -> str:
        self.asked += 1
        assert self.opened.wait(PATIENT_S)
        if not self._decides:
            raise Undecided("it is closed")
        return f"{function} of {arguments[0]}"


async def test_what_is_not_decided_is_compared_as_text_and_asked_again() -> None:
    gate = Gate(decides=False)
    gate.opened.set()
    comparer = Comparer(gate)
    assert [await comparer.key(" 1  2"), await comparer.key("1 2")] == [text_key("1 2")] * 2
    assert gate.asked == 2
    comparer.close()


async def test_what_is_decided_is_remembered() -> None:
    gate = Gate()
    gate.opened.set()
    comparer = Comparer(gate)
    for answer in ("1", "1", *map(str, range(2, KEPT + 2)), "1"):
        assert await comparer.key(answer) == f"key of {answer}"
    assert gate.asked == KEPT + 2, "the first was forgotten for the last"
    comparer.close()


async def test_the_queue_is_bounded_and_the_event_loop_goes_on() -> None:
    gate = Gate()
    comparer = Comparer(gate)
    waiting = [asyncio.create_task(comparer.key(str(number))) for number in range(QUEUE)]
    await asyncio.sleep(0)
    began = time.monotonic()
    assert await comparer.key("one more") == text_key("one more")
    assert time.monotonic() - began < PATIENT_S
    gate.opened.set()
    assert await asyncio.gather(*waiting) == [f"key of {number}" for number in range(QUEUE)]
    comparer.close()
