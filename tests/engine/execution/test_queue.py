"""The trial queue without Ray: what a death, a preemption and a failure cost, and that nothing is lost or done twice."""

from __future__ import annotations

from collections import Counter

import pytest

from stlab.execution.attempts import MemoryKills
from stlab.execution.capacity import Quota, needs, quota_of
from stlab.execution.events import Ended, Started
from stlab.execution.queue import Assignment, TrialQueue
from stlab.execution.supply import WAIT
from stlab.study.spec import ResourcesSpec
from tests.support.queues import pack_queue

PLAIN = ResourcesSpec(gpus=0)


def queue_of(*packs: str, resources: ResourcesSpec = PLAIN) -> TrialQueue:
    return pack_queue([pack.split() for pack in packs], resources)


def take(queue: TrialQueue, group: int = 0) -> Assignment:
    taken = queue.take(group)
    assert isinstance(taken, Assignment)
    return taken


def run_all(queue: TrialQueue, groups: int) -> list[str]:
    """The trials that are still given out, all groups in turn; each trial ends well."""
    done = []
    open_groups = list(range(groups))
    while open_groups:
        for group in list(open_groups):
            taken = queue.take(group)
            if taken is None:
                open_groups.remove(group)
            elif isinstance(taken, Assignment):
                done.append(taken.task.trial_id)
                queue.end(group, "finished")
    return done


def test_a_trial_whose_group_died_goes_on_with_whoever_comes_first() -> None:
    queue = queue_of("a b", "c")
    take(queue, 0)
    take(queue, 1)
    assert queue.worker_died(0, "the node died")
    queue.end(1, "finished")
    again = take(queue, 1)
    assert (again.task.trial_id, again.attempt) == ("a", 2), "its own group may never find room again"
    assert not again.needs_less_memory
    assert take(queue, 0).task.trial_id == "b"
    queue.end(0, "finished")
    queue.end(1, "finished")
    assert run_all(queue, 2) == []
    assert Counter(e.trial_id for e in queue.drain() if isinstance(e, Ended)) == {"a": 1, "b": 1, "c": 1}


def test_a_group_that_comes_back_without_a_word_has_died() -> None:
    queue = queue_of("a")
    assert take(queue).attempt == 1
    assert take(queue).attempt == 2


def test_deaths_are_counted_until_the_trial_is_given_up_by_name() -> None:
    queue = queue_of("a b", resources=ResourcesSpec(gpus=0, infrastructure_retries=2, trial_retries=5))
    for attempt in (1, 2, 3):
        taken = take(queue)
        assert (taken.task.trial_id, taken.attempt, taken.given_up) == ("a", attempt, None)
        queue.worker_died(0, f"death {attempt}.")
    taken = take(queue)
    assert taken.given_up is not None
    assert "died 3 times (resources.infrastructure_retries: 2); the last time: death 3." in taken.given_up
    queue.end(0, "failed")
    assert take(queue).task.trial_id == "b", "a trial that is given up is not run again for its own sake"


def test_a_trial_that_is_given_up_is_not_announced_as_started() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=1))
    for _ in range(2):
        take(queue)
        queue.worker_died(0, "killed")
    assert take(queue).given_up is not None
    queue.end(0, "failed")
    assert [type(event) for event in queue.drain()] == [Started, Started, Ended]


def test_only_deaths_in_a_row_before_any_trial_end_a_group() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=100))
    for _ in range(4):
        assert queue.worker_died(0, "died while it started")
        take(queue)
        assert queue.worker_died(0, "died with a trial")
    assert [queue.worker_died(0, "died while it started") for _ in range(4)] == [True, True, True, False]


def test_errors_of_its_own_have_a_budget_of_their_own() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=1, trial_retries=2))
    take(queue)
    queue.worker_died(0, "killed")
    for attempt in (2, 3, 4):
        taken = take(queue)
        assert (taken.attempt, taken.given_up, taken.failed_before) == (attempt, None, attempt > 2)
        queue.end(0, "failed")
    assert queue.take(0) is None
    assert sum(isinstance(e, Ended) for e in queue.drain()) == 1, "it is over once"


def test_without_retries_a_failed_trial_is_not_run_again() -> None:
    queue = queue_of("a")
    take(queue)
    queue.end(0, "failed")
    assert queue.take(0) is None


def test_a_preemption_costs_nothing_however_often() -> None:
    queue = queue_of("a b", "c", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for _ in range(10):
        assert take(queue, 0).task.trial_id == "a"
        queue.hand_back(0)
    take(queue, 1)
    queue.end(1, "finished")
    taken = take(queue, 1)
    assert (taken.task.trial_id, taken.attempt, taken.given_up) == ("a", 1, None), "another group takes it over"
    assert [e.trial_id for e in queue.drain() if isinstance(e, Started)] == ["a", "c"], "begun once"


def test_what_ran_out_of_memory_is_told_once() -> None:
    queue = queue_of("a")
    take(queue)
    queue.worker_died(0, "killed for its memory", of_memory=True)
    assert take(queue).needs_less_memory
    queue.worker_died(0, "the node died")
    assert not take(queue).needs_less_memory, "the trial's directory remembers how small its batches are"


@pytest.mark.parametrize("left", ["hand_back", "end"])
def test_a_lack_of_memory_is_not_asked_about_again_after_a_preemption_or_an_error(left: str) -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, trial_retries=5))
    take(queue)
    queue.worker_died(0, "killed for its memory", of_memory=True)
    assert take(queue).needs_less_memory
    queue.hand_back(0) if left == "hand_back" else queue.end(0, "failed")
    assert not take(queue).needs_less_memory, "its directory says by now how small its batches are"


def test_a_death_while_the_kernel_killed_for_memory_is_one_of_memory() -> None:
    queue = queue_of("a b", "c d", resources=ResourcesSpec(gpus=0, infrastructure_retries=1))

    def taken(group: int, machine: str, count: int) -> Assignment:
        found = queue.take(group, [MemoryKills(machine, count), MemoryKills("another", 100 - count)])
        assert isinstance(found, Assignment)
        return found

    taken(0, "one", 7)
    queue.worker_died(0, "it died.")
    assert not taken(0, "one", 7).needs_less_memory, "the kernel killed nobody"
    queue.worker_died(0, "it died.")
    assert taken(0, "one", 8).needs_less_memory
    queue.worker_died(0, "it died.")
    taken(1, "one", 9)  # c, which tells what the kernel of the first machine has done meanwhile
    assert taken(0, "two", 3).needs_less_memory, "wherever it goes on"
    queue.hand_back(0)
    assert not taken(0, "one", 12).needs_less_memory, "a preemption is no death"
    assert taken(0, "one", 12).given_up == (
        "its workers died 2 times (resources.infrastructure_retries: 1); the last time: nobody could say why. "
        "`stlab run --retry-failed` goes on from its last checkpoint"
    )


def test_the_kernel_of_any_of_a_trials_machines_may_have_killed() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, workers=2))
    queue.take(0, [MemoryKills("one", 7), MemoryKills("two", 3)])
    queue.worker_died(0, "it died.")
    found = queue.take(0, [MemoryKills("one", 7), MemoryKills("two", 4)])
    assert isinstance(found, Assignment)
    assert found.needs_less_memory


def test_deaths_for_want_of_memory_cost_nothing_as_long_as_less_can_be_needed() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for _ in range(12):
        assert take(queue).given_up is None
        queue.worker_died(0, "killed for its memory", of_memory=True)
    assert take(queue).given_up is None
    queue.worker_died(0, "killed for its memory", of_memory=True)
    assert "for want of memory 13 times" in (take(queue).given_up or "")


def test_a_death_after_the_announcement_of_a_preemption_is_no_failure_and_the_next_is() -> None:
    queue = queue_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for lost in (lambda: queue.worker_died(0, "its node was taken away"), lambda: None):  # reported, or noticed when the group comes again
        taken = take(queue)
        assert (taken.attempt, taken.given_up) == (1, None)
        queue.announce_preemption(0)
        lost()
    assert take(queue).given_up is None
    queue.worker_died(0, "killed")
    assert take(queue).given_up is not None


def test_what_one_of_several_workers_wrote_when_another_died_is_set_aside() -> None:
    for workers, is_set_aside in ((1, False), (2, True)):
        queue = queue_of("a", resources=ResourcesSpec(gpus=0, workers=workers))
        assert not take(queue).failed_before
        queue.worker_died(0, "the node died")
        assert take(queue).failed_before is is_set_aside


def test_a_trial_that_another_study_trains_waits_behind_the_others() -> None:
    queue = queue_of("a b")
    assert take(queue).task.trial_id == "a"
    queue.defer(0)
    assert take(queue).task.trial_id == "b"
    queue.end(0, "finished")
    taken = take(queue)
    assert (taken.task.trial_id, taken.attempt) == ("a", 1)


def test_a_group_that_dies_before_it_has_a_trial_is_not_started_for_ever() -> None:
    queue = queue_of("a")
    assert [queue.worker_died(0, "no module named stlab") for _ in range(4)] == [True, True, True, False]
    take(queue)
    queue.worker_died(0, "killed")
    take(queue)
    queue.end(0, "finished")
    assert queue.worker_died(0, "killed"), "one that had a trial begins to count anew"


def test_quota() -> None:
    one = ResourcesSpec(gpus=1, cpus=2, workers=2, max_gpus=5, max_cpus=100)
    assert needs(one) == {"CPU": 4, "GPU": 2}
    assert quota_of([one, PLAIN]) == {"CPU": 100, "GPU": 5}
    quota = Quota([needs(one)] * 3 + [needs(PLAIN)], quota_of([one]))
    assert [quota.admit(group) for group in (0, 1, 2, 3, 0)] == [True, True, False, True, True]
    quota.leave(0)
    assert quota.admit(2)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_whatever_happens_every_trial_ends_once(groups: int) -> None:
    import random

    draw = random.Random(groups)
    names = [f"t{n}" for n in range(20)]
    queue = pack_queue([names[g::groups] for g in range(groups)], ResourcesSpec(gpus=0, infrastructure_retries=100))
    busy: dict[int, str] = {}
    for _ in range(2000):
        group = draw.randrange(groups)
        if group in busy:
            assert list(busy.values()).count(busy[group]) == 1, "two groups train it"
            what = draw.choice([lambda g: queue.end(g, "finished"), queue.hand_back, queue.defer, lambda g: queue.worker_died(g, "killed")])
            what(group)
            del busy[group]
        elif isinstance(taken := queue.take(group), Assignment):
            busy[group] = taken.task.trial_id
        else:
            assert taken is None or taken is WAIT
    for group in busy:
        queue.end(group, "finished")
    run_all(queue, groups)
    assert Counter(e.trial_id for e in queue.drain() if isinstance(e, Ended)) == dict.fromkeys(names, 1)
