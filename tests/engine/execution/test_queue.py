"""Boards without Ray: whose workers die, who is told to go, who fails; what each costs, and that nothing is lost or done twice."""

from __future__ import annotations

from collections import Counter

import pytest

from stlab.execution.memory_kills import MemoryKills
from stlab.execution.queue import WAIT, Assignment, Board
from stlab.execution.quota import Quota, limits, needs
from stlab.study.spec import ResourcesSpec

PLAIN = ResourcesSpec(gpus=0)


def board_of(*packs: str, resources: ResourcesSpec = PLAIN) -> Board:
    return Board([pack.split() for pack in packs], [resources] * len(packs))


def take(board: Board, group: int = 0) -> Assignment:
    taken = board.take(group)
    assert isinstance(taken, Assignment)
    return taken


def run_all(board: Board, groups: int) -> list[str]:
    """What is still given out, all groups in turn; each trial ends well."""
    done = []
    open_groups = list(range(groups))
    while open_groups:
        for group in list(open_groups):
            taken = board.take(group)
            if taken is None:
                open_groups.remove(group)
            elif isinstance(taken, Assignment):
                done.append(taken.trial_id)
                board.end(group, "finished")
    return done


def test_a_trial_whose_group_died_goes_on_with_whoever_comes_first() -> None:
    board = board_of("a b", "c")
    take(board, 0)
    take(board, 1)
    assert board.fall(0, "the node died")
    board.end(1, "finished")
    again = take(board, 1)
    assert (again.trial_id, again.attempt) == ("a", 2), "its own group may never find room again"
    assert not again.needs_less_memory
    assert take(board, 0).trial_id == "b"
    board.end(0, "finished")
    board.end(1, "finished")
    assert run_all(board, 2) == []
    assert Counter(e["trial_id"] for e in board.hear() if e["kind"] == "ended") == {"a": 1, "b": 1, "c": 1}


def test_a_group_that_comes_back_without_a_word_has_died() -> None:
    board = board_of("a")
    assert take(board).attempt == 1
    assert take(board).attempt == 2


def test_deaths_are_counted_until_the_trial_is_given_up_by_name() -> None:
    board = board_of("a b", resources=ResourcesSpec(gpus=0, infrastructure_retries=2, trial_retries=5))
    for attempt in (1, 2, 3):
        taken = take(board)
        assert (taken.trial_id, taken.attempt, taken.given_up) == ("a", attempt, None)
        board.fall(0, f"death {attempt}.")
    taken = take(board)
    assert taken.given_up is not None
    assert "died 3 times (resources.infrastructure_retries: 2); the last time: death 3." in taken.given_up
    board.end(0, "failed")
    assert take(board).trial_id == "b", "a trial that is given up is not run again for its own sake"


def test_errors_of_its_own_have_a_budget_of_their_own() -> None:
    board = board_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=1, trial_retries=2))
    take(board)
    board.fall(0, "killed")
    for attempt in (2, 3, 4):
        taken = take(board)
        assert (taken.attempt, taken.given_up, taken.failed_before) == (attempt, None, attempt > 2)
        board.end(0, "failed")
    assert board.take(0) is None
    assert [e["kind"] for e in board.hear()].count("ended") == 1, "it is over once"


def test_without_retries_a_failed_trial_is_not_run_again() -> None:
    board = board_of("a")
    take(board)
    board.end(0, "failed")
    assert board.take(0) is None


def test_a_preemption_costs_nothing_however_often() -> None:
    board = board_of("a b", "c", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for _ in range(10):
        assert take(board, 0).trial_id == "a"
        board.hand_back(0)
    take(board, 1)
    board.end(1, "finished")
    taken = take(board, 1)
    assert (taken.trial_id, taken.attempt, taken.given_up) == ("a", 1, None), "another group takes it over"
    assert [e["trial_id"] for e in board.hear() if e["kind"] == "started"] == ["a", "c"], "begun once"


def test_what_ran_out_of_memory_is_told_once() -> None:
    board = board_of("a")
    take(board)
    board.fall(0, "killed for its memory", of_memory=True)
    assert take(board).needs_less_memory
    board.fall(0, "the node died")
    assert not take(board).needs_less_memory, "the trial's directory remembers how small its batches are"


@pytest.mark.parametrize("left", ["hand_back", "end"])
def test_a_lack_of_memory_is_not_asked_about_again_after_a_preemption_or_an_error(left: str) -> None:
    board = board_of("a", resources=ResourcesSpec(gpus=0, trial_retries=5))
    take(board)
    board.fall(0, "killed for its memory", of_memory=True)
    assert take(board).needs_less_memory
    board.hand_back(0) if left == "hand_back" else board.end(0, "failed")
    assert not take(board).needs_less_memory, "its directory says by now how small its batches are"


def test_a_death_while_the_kernel_killed_for_memory_is_one_of_memory() -> None:
    board = board_of("a b", "c d", resources=ResourcesSpec(gpus=0, infrastructure_retries=1))

    def taken(group: int, machine: str, count: int) -> Assignment:
        found = board.take(group, [MemoryKills(machine, count), MemoryKills("another", 100 - count)])
        assert isinstance(found, Assignment)
        return found

    taken(0, "one", 7)
    board.fall(0, "it died.")
    assert not taken(0, "one", 7).needs_less_memory, "the kernel killed nobody"
    board.fall(0, "it died.")
    assert taken(0, "one", 8).needs_less_memory
    board.fall(0, "it died.")
    taken(1, "one", 9)  # c, which tells what the kernel of the first machine has done meanwhile
    assert taken(0, "two", 3).needs_less_memory, "wherever it goes on"
    board.hand_back(0)
    assert not taken(0, "one", 12).needs_less_memory, "a preemption is no death"
    assert taken(0, "one", 12).given_up == (
        "its workers died 2 times (resources.infrastructure_retries: 1); the last time: nobody could say why. "
        "`stlab run --retry-failed` goes on from its last checkpoint"
    )


def test_the_kernel_of_any_of_a_trials_machines_may_have_killed() -> None:
    board = board_of("a", resources=ResourcesSpec(gpus=0, workers=2))
    board.take(0, [MemoryKills("one", 7), MemoryKills("two", 3)])
    board.fall(0, "it died.")
    found = board.take(0, [MemoryKills("one", 7), MemoryKills("two", 4)])
    assert isinstance(found, Assignment)
    assert found.needs_less_memory


def test_deaths_for_want_of_memory_cost_nothing_as_long_as_less_can_be_needed() -> None:
    board = board_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for _ in range(12):
        assert take(board).given_up is None
        board.fall(0, "killed for its memory", of_memory=True)
    assert take(board).given_up is None
    board.fall(0, "killed for its memory", of_memory=True)
    assert "for want of memory 13 times" in (take(board).given_up or "")


def test_a_death_after_a_notice_is_no_failure_and_the_next_is() -> None:
    board = board_of("a", resources=ResourcesSpec(gpus=0, infrastructure_retries=0))
    for lost in (lambda: board.fall(0, "its node was taken away"), lambda: None):  # told of, or seen when the group comes again
        taken = take(board)
        assert (taken.attempt, taken.given_up) == (1, None)
        board.notice(0)
        lost()
    assert take(board).given_up is None
    board.fall(0, "killed")
    assert take(board).given_up is not None


def test_what_one_of_several_workers_wrote_when_another_died_is_set_aside() -> None:
    for workers, is_set_aside in ((1, False), (2, True)):
        board = board_of("a", resources=ResourcesSpec(gpus=0, workers=workers))
        assert not take(board).failed_before
        board.fall(0, "the node died")
        assert take(board).failed_before is is_set_aside


def test_a_trial_that_another_study_trains_waits_behind_the_others() -> None:
    board = board_of("a b")
    assert take(board).trial_id == "a"
    board.defer(0)
    assert take(board).trial_id == "b"
    board.end(0, "finished")
    taken = take(board)
    assert (taken.trial_id, taken.attempt) == ("a", 1)


def test_a_group_that_dies_before_it_has_a_trial_is_not_started_for_ever() -> None:
    board = board_of("a")
    assert [board.fall(0, "no module named stlab") for _ in range(4)] == [True, True, True, False]
    take(board)
    board.fall(0, "killed")
    take(board)
    board.end(0, "finished")
    assert board.fall(0, "killed"), "one that had a trial begins to count anew"


def test_quota() -> None:
    one = ResourcesSpec(gpus=1, cpus=2, workers=2, max_gpus=5, max_cpus=100)
    assert needs(one) == {"CPU": 4, "GPU": 2}
    assert limits([one, PLAIN]) == {"CPU": 100, "GPU": 5}
    quota = Quota([needs(one)] * 3 + [needs(PLAIN)], limits([one]))
    assert [quota.admit(group) for group in (0, 1, 2, 3, 0)] == [True, True, False, True, True]
    quota.leave(0)
    assert quota.admit(2)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_whatever_happens_every_trial_ends_once(groups: int) -> None:
    import random

    draw = random.Random(groups)
    names = [f"t{n}" for n in range(20)]
    board = Board([names[g::groups] for g in range(groups)], [ResourcesSpec(gpus=0, infrastructure_retries=100)] * groups)
    busy: dict[int, str] = {}
    for _ in range(2000):
        group = draw.randrange(groups)
        if group in busy:
            assert list(busy.values()).count(busy[group]) == 1, "two groups train it"
            what = draw.choice([lambda g: board.end(g, "finished"), board.hand_back, board.defer, lambda g: board.fall(g, "killed")])
            what(group)
            del busy[group]
        elif isinstance(taken := board.take(group), Assignment):
            busy[group] = taken.trial_id
        else:
            assert taken is None or taken is WAIT
    for group in busy:
        board.end(group, "finished")
    run_all(board, groups)
    assert Counter(e["trial_id"] for e in board.hear() if e["kind"] == "ended") == dict.fromkeys(names, 1)
