"""Faults in the running application under load: `make chaos` kills and freezes processes, and counts what clients notice.

Each fault strikes at a random moment while 50 different chats stream. The same chats have run undisturbed before, so a token that
is lost, doubled or wrong is seen. The exit status is 1 if a stream was affected by a fault that streams must survive, or a process
was replaced after a pause of all of them. `long replies` come last: replies of `--long` seconds while
ingresses are killed (`cluster.bench.long_replies`).

With `--stored` the chats can be resumed, two ingresses serve them, and the clients ask for what comes after the last event wherever
a stream breaks. Then no fault may show: also not the death of both ingresses, of HAProxy, or of `everything`, after which the
server is started again. With `--postgresql` the store is a PostgreSQL server, whose crash and new start is a fault, too.

    python -m cluster.bench.chaos [--stored [--postgresql]] [--rounds 1] [--seed 1] [--faults engine ...] [--long 252] [k=v ...]
"""

import argparse
import asyncio
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import psutil

from cluster.bench import long_replies
from cluster.bench.chats import STREAMS, Reply, StoredReply, client, question, storable
from cluster.bench.postgresql import PostgreSQL, folder_of_programs
from cluster.bench.stack import Stack, command_line, engines, kill, ours, running
from deployments import settings as settings_module
from deployments.host.signals import interrupt_by_signals

STORED = ("ingress.num_replicas=2", "ingress.num_cpus=0.2")
ARGUMENTS = ("llm.num_replicas=2", "llm.num_cpus=0.4", "ingress.num_cpus=0.4", "ui.enabled=false", "llm.hung_after_s=20")


@dataclass(frozen=True)
class Fault:
    """A signal to some processes of the application. Where it is to be `survived`, no stream may show it; no stored one ever may.

    Where it `ends` the application, that is started again; with `ends_store`, the database of stored replies crashes, and is back
    after `STORE_AWAY_S`. With `pause_s` all processes are stopped and go on after that time, as
    on a machine that is suspended: none may be replaced.
    """

    signal: int
    targets: Callable[[Stack, random.Random], list[psutil.Process]]
    survived: bool = True
    pause_s: float = 0.0
    ends: bool = False
    ends_store: bool = False

    def strike(self, stack: Stack, rng: random.Random) -> None:
        """Send the signals."""
        if self.pause_s:
            stack.pause()
            time.sleep(self.pause_s)
            stack.resume()
        for process in self.targets(stack, rng):
            os.kill(process.pid, self.signal)


def pause(seconds: float) -> Fault:
    """Return a pause of all processes."""
    return Fault(signal.SIGCONT, lambda stack, rng: stack.processes(), pause_s=seconds)


FAULTS = {
    "controller": Fault(signal.SIGKILL, lambda stack, rng: stack.named("ServeController")),
    "engine": Fault(signal.SIGKILL, lambda stack, rng: engines(rng.choice(stack.llm_replicas()))),
    "actor": Fault(signal.SIGKILL, lambda stack, rng: [rng.choice(stack.llm_replicas())]),
    "engine ended": Fault(signal.SIGTERM, lambda stack, rng: engines(rng.choice(stack.llm_replicas()))),
    "frozen": Fault(signal.SIGSTOP, lambda stack, rng: engines(rng.choice(stack.llm_replicas()))),
    "all engines": Fault(signal.SIGKILL, lambda stack, rng: [engine for r in stack.llm_replicas() for engine in engines(r)]),
    "proxy": Fault(signal.SIGKILL, lambda stack, rng: stack.named("haproxy -"), survived=False),
    "ingress": Fault(signal.SIGKILL, lambda stack, rng: stack.named("ServeReplica:default:Ingress"), survived=False),
    "one ingress": Fault(
        signal.SIGKILL, lambda stack, rng: [rng.choice(stack.named("ServeReplica:default:Ingress"))], survived=False
    ),
    "everything": Fault(signal.SIGKILL, lambda stack, rng: stack.processes(), survived=False, ends=True),
    "postgresql": Fault(0, lambda stack, rng: [], survived=False, ends_store=True),
    "pause of 20 s": pause(20),
    "pause of 100 s": pause(100),
    "pause of 600 s": pause(600),
}
"""`frozen` is an engine that hangs, `engine ended` one that gets SIGTERM, as when a host shuts down."""
LONG, LONG_S = "long replies", 2.1 * long_replies.HARD_STOP_S
"""Twice as long as a HAProxy that is replaced as Serve does it, and a little."""
FOR_STORED = ("one ingress", "everything", "postgresql")
"""Faults that only make sense where streams are stored."""
DEFAULT = [*(name for name in FAULTS if name not in FOR_STORED), LONG]
STORE_AWAY_S = 5.0
AFTERMATH_S = 60.0
"""So long after a pause, whoever would take a process for dead has replaced it."""


@dataclass
class Outcome:
    """The effect of a fault. `lost` streams broke or ended with an error; `wrong` ones differ from the undisturbed ones.

    `replaced` are the processes, of those that should last, that were there before and are not any more.
    """

    fault: str
    streams: int
    lost: list[str]
    wrong: int
    moved: int
    again: int
    ended_s: float
    whole_s: float
    replaced: list[str]

    def row(self) -> str:
        """Return a row of the table."""
        counts = (self.fault, self.streams, len(self.lost), self.wrong, self.moved, self.again)
        return "| " + " | ".join(map(str, counts)) + f" | {self.ended_s:.1f} | {self.whole_s:.1f} | {len(self.replaced)} |"


@dataclass
class Application:
    """A running application.

    `stored` is whether its streams are, `database` where, if not in a file. `again` ends what is left of it and starts it anew.
    """

    stack: Stack
    stored: bool = False
    again: Callable[[], Stack] | None = None
    database: PostgreSQL | None = None

    def restart(self) -> None:
        """Start it again."""
        assert self.again is not None
        self.stack = self.again()

    def restart_database(self) -> None:
        """Have the database crash, and start it again after a while."""
        assert self.database is not None
        self.database.stop()
        time.sleep(STORE_AWAY_S)
        self.database.start()


HEADER = """| fault | streams | lost | wrong | moved | tokens computed again | s until all ended | s until whole | replaced |
|---|---|---|---|---|---|---|---|---|"""


async def counted(http: httpx.AsyncClient) -> tuple[int, int]:
    """Return the requests moved and the tokens computed again so far, from the ingress' metrics."""
    text = (await http.get("/metrics")).text
    found = [re.search(rf"^satori_failover_{name}_total (\S+)", text, re.MULTILINE) for name in ("requests", "tokens")]
    moved, again = (int(float(match[1])) if match else 0 for match in found)
    return moved, again


def begin(http: httpx.AsyncClient, stored: bool) -> tuple[Sequence[Reply], asyncio.Future[list[None]]]:
    """Begin all streams; return their replies, and what ends with them."""
    kind, asked = (StoredReply, storable) if stored else (Reply, question)
    replies = [kind() for _ in range(STREAMS)]
    return replies, asyncio.gather(*(reply.read(http, asked(number)) for number, reply in enumerate(replies)))


async def calm(http: httpx.AsyncClient, stored: bool = False) -> Sequence[Reply]:
    """Return the replies of an undisturbed run. Raises RuntimeError where a stream fails."""
    replies, reading = begin(http, stored)
    await reading
    if not all(reply.well for reply in replies):
        raise RuntimeError(f"undisturbed streams failed: {[reply.errors for reply in replies if not reply.well]}")
    return replies


async def struck(http: httpx.AsyncClient, chunks: int, fault: Callable[[], None], stored: bool = False) -> Sequence[Reply]:
    """Return the replies of streams; call `fault` once that many of their chunks have arrived.

    Some streams may have no chunk by then: a new engine compiles a grammar before a stream with it begins, while others end.
    """
    replies, reading = begin(http, stored)
    while sum(reply.chunks for reply in replies) < chunks:
        await asyncio.sleep(0.001)
    fault()
    await reading
    return replies


async def strike(app: Application, http: httpx.AsyncClient, name: str, wanted: Sequence[Reply], rng: random.Random) -> Outcome:
    """Run all streams, cause the fault after a random number of chunks, and compare the replies with the undisturbed ones."""
    fault = FAULTS[name]
    await app.stack.whole(http)
    before, lasting = await counted(http), {process: command_line(process) for process in app.stack.lasting()}
    began, restarting = 0.0, asyncio.get_running_loop().create_future()

    def at_once() -> None:
        nonlocal began, restarting
        began = time.monotonic()
        fault.strike(app.stack, rng)
        began += fault.pause_s
        if fault.ends:
            restarting = asyncio.ensure_future(asyncio.to_thread(app.restart))
        elif fault.ends_store:
            restarting = asyncio.ensure_future(asyncio.to_thread(app.restart_database))
        else:
            restarting.set_result(None)

    # Early, since an engine is several times as far as the chunks that have arrived here. Later it may have finished.
    moment = rng.randrange(STREAMS, sum(reply.chunks for reply in wanted) // 12)
    replies = await struck(http, moment, at_once, app.stored)
    ended_s = time.monotonic() - began
    await restarting
    await app.stack.whole(http)
    whole_s = time.monotonic() - began
    if fault.pause_s:
        await asyncio.sleep(AFTERMATH_S)
    after, here = await counted(http), app.stack.lasting()
    return Outcome(
        name,
        len(replies),
        [error for reply in replies for error in reply.errors],
        sum(reply.well and not reply.same(other) for reply, other in zip(replies, wanted, strict=True)),
        max(0, after[0] - before[0]),  # a new ingress counts from 0
        max(0, after[1] - before[1]),
        ended_s,
        whole_s,
        [words for process, words in lasting.items() if process not in here],
    )


async def run(app: Application, faults: Sequence[str], rounds: int, seed: int) -> list[Outcome]:
    """Cause each fault in turn; print each row at once."""
    rng, outcomes = random.Random(seed), []
    async with client(app.stack.url) as http:
        await app.stack.whole(http)
        wanted = await calm(http, app.stored)
        print(HEADER)
        for name in [name for _ in range(rounds) for name in faults]:
            outcomes.append(await strike(app, http, name, wanted, rng))
            print(outcomes[-1].row(), flush=True)
    return outcomes


@contextmanager
def store(postgresql: bool) -> Iterator[PostgreSQL | None]:
    """Run the database that stored replies are in, if that is not a file; None if it is."""
    if not postgresql:
        yield None
        return
    binaries = folder_of_programs()
    if binaries is None:
        sys.exit("--postgresql: PostgreSQL is not installed; sudo make programs brings it")
    database = PostgreSQL(binaries)
    try:
        database.start()
        yield database
    finally:
        database.close()


def attack(options: argparse.Namespace, database: PostgreSQL | None) -> list[Outcome]:
    """Start the application, and cause the faults in it."""
    faults = [name for name in options.faults if name != LONG]
    if not faults:
        return []
    stored = [*(STORED if options.stored else ()), *([f"store.url={database.url}"] if database else ())]
    arguments = [*ARGUMENTS, *stored, *options.arguments]
    server = ours("chaos", settings_module.load(dict(word.split("=", 1) for word in arguments)), arguments)
    with ExitStack() as opened:

        def again() -> Stack:
            kill(app.stack.processes())
            opened.close()
            return opened.enter_context(running(server))

        app = Application(opened.enter_context(running(server)), options.stored, again, database)
        app.stack.settle()
        return asyncio.run(run(app, faults, options.rounds, options.seed))


def main() -> None:
    """Start the application, cause the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stored", action="store_true", help="chats that are stored, and resumed by their clients")
    parser.add_argument("--postgresql", action="store_true", help="they are stored in a PostgreSQL server")
    parser.add_argument("--faults", nargs="+", choices=[*FAULTS, LONG], help="default: all that make sense")
    parser.add_argument("--long", type=float, default=LONG_S, help="seconds that long replies take")
    parser.add_argument("arguments", nargs="*", help="settings, key=value")
    options = parser.parse_args()
    if options.faults is None:
        for_stored = [name for name, fault in FAULTS.items() if not fault.pause_s and (options.postgresql or not fault.ends_store)]
        options.faults = for_stored if options.stored else DEFAULT
    if strange := not options.stored and [name for name in options.faults if name in FOR_STORED]:
        parser.error(f"argument --faults: {strange[0]}: allowed with --stored only")
    if options.postgresql and not options.stored:
        parser.error("argument --postgresql: allowed with --stored only")
    if "postgresql" in options.faults and not options.postgresql:
        parser.error("argument --faults: postgresql: allowed with --postgresql only")
    interrupt_by_signals()
    with store(options.postgresql) as database:
        outcomes = attack(options, database)
    cut = LONG in options.faults and not long_replies.see_through(options.long)
    tested = [o for o in outcomes if options.stored or FAULTS[o.fault].survived]
    broken = [o for o in tested if o.lost or o.wrong or (FAULTS[o.fault].pause_s and o.replaced)]
    for outcome in broken:
        print(f"{outcome.fault}: {outcome.wrong} wrong, lost: {outcome.lost[:5]}, replaced: {outcome.replaced}", file=sys.stderr)
    sys.exit(1 if broken or cut else 0)


if __name__ == "__main__":
    main()
