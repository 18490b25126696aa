"""The simulator of routes: a replica's cache and steps, and ours beside the fewest requests on small instances."""

from functools import partial

import pytest

from cluster.simulate.replica_model import ReplicaModel
from cluster.simulate.routing.policies import Ours, rest
from cluster.simulate.routing.replica import BLOCK, Replica, Request
from cluster.simulate.routing.simulation import Outcome, simulate
from cluster.simulate.routing.workloads import Workload, few_shot, multi_turn


def request(number: int, blocks: list[int], reply: int = 10) -> Request:
    return Request(0.0, len(blocks) * BLOCK, reply, blocks, 2.0, 0.5, number=number)


def small(kv_blocks: int = 100, seqs: int = 8) -> Replica:
    return Replica(ReplicaModel(kv_tokens=kv_blocks * BLOCK, max_num_seqs=seqs), "r")


def test_a_prompt_is_read_once_and_a_token_takes_a_step() -> None:
    replica = small()
    replica.add(one := request(1, [1, 2, 3, 4]))
    replica.advance(10.0)
    model = replica.model
    assert one.first_s == pytest.approx(model.step_s + 4 * BLOCK / model.prefill_tokens_per_s, rel=0.001)
    assert one.end_s - one.first_s == pytest.approx(9 * model.step_s, rel=0.02)
    replica.add(two := request(2, [1, 2, 3, 5]))
    replica.advance(20.0)
    assert replica.prefilled == 4 * BLOCK + BLOCK
    assert replica.ended == [one, two]
    assert replica.ongoing == 0


def test_the_least_recently_used_blocks_go_first_and_events_tell_it() -> None:
    replica = small(kv_blocks=10)
    for number, first in enumerate((10, 20, 30)):
        replica.add(request(number, [first + place for place in range(4)]))
        replica.advance(10.0 * (number + 1))
    assert [replica.cached([first + place for place in range(4)]) for first in (10, 20, 30)] == [1, 4, 4]
    there = set[int]()
    for _, block, is_there in replica.events:
        (there.add if is_there else there.discard)(block)
    assert there == {10, *range(20, 24), *range(30, 34)}


def test_a_full_replica_has_requests_wait_or_start_anew_and_ends_them_all() -> None:
    replica = small(kv_blocks=12, seqs=4)
    for number in range(6):
        replica.add(request(number, [10 * number, 10 * number + 1], reply=5 * BLOCK))
    replica.advance(1.0)
    assert replica.ongoing == 6
    assert replica.waiting
    replica.advance(1000.0)
    assert len(replica.ended) == 6
    assert replica.preempted > 0


def test_a_long_reply_is_expected_to_be_longer_still() -> None:
    one = request(1, [])
    expected = [rest(one, generated) for generated in (0, 8, 50, 1000)]
    assert expected[0] == pytest.approx(8.37, abs=0.01)
    assert expected[1] < expected[2] < expected[3]


def ran(fill: object, ingresses: int = 1, index: bool = True) -> Outcome:
    workload = Workload(fill, duration_s=150.0)  # type: ignore[arg-type]
    return simulate(workload, Ours(7, ingresses, index), seed=11, replicas=4)


@pytest.mark.parametrize("fill", [multi_turn, few_shot])
def test_ours_reads_less_than_half_and_is_no_slower(fill: object) -> None:
    ours, fewest = ran(fill).row(), ran(fill, index=False).row()
    assert ours["requests"] > 200
    assert ours["prefilled"] < 0.6 * fewest["prefilled"]
    assert ours["ttft_p95"] < 0.6 * fewest["ttft_p95"]
    assert ours["e2e_p95"] < fewest["e2e_p95"]


@pytest.mark.parametrize("ingresses", [1, 2, 4])
def test_with_several_ingresses_no_replica_gets_much_more_than_its_share(ingresses: int) -> None:
    assert ran(partial(multi_turn, median=3), ingresses).most <= 1.25
