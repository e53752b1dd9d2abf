"""A process that is slow is waited for; one that is gone ends the others, in a bounded time and with one sentence."""

import time

import pytest

from advflyp.errors import GONE
from training.processes import start
from waiting import LIMIT


def results(what: str, stopped: int | None = None) -> list[tuple[int | None, str, str]]:
    """Exit code, stdout and stderr of two processes; nothing of one that does not end."""
    processes = start(2, ["waiting", what])
    found: list[tuple[int | None, str, str]] = []
    try:
        for rank, process in enumerate(processes):
            said = ("", "") if rank == stopped else process.communicate(60)
            found.append((process.returncode, *said))
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.mark.parametrize("what", ["slow", pytest.param("slow everywhere", marks=pytest.mark.slow)])
def test_a_slow_process_is_waited_for(what: str) -> None:
    """For three times as long as a process may keep silent that is gone."""
    begun = time.monotonic()
    expected = {"slow": [[0, 1]], "slow everywhere": ["done", (False, False), (True, True), (True, False), 3]}
    for code, out, err in results(what):
        assert (code, out) == (0, f"{expected[what]}\n"), err
    assert time.monotonic() - begun > 3 * LIMIT


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["kill", "fail", "vanish"])
def test_a_process_that_is_gone_ends_the_others(what: str, rank: int) -> None:
    """The first, which holds the store, or another; also where no connection is closed, as when a machine vanishes."""
    found = results(f"{what} {rank}", stopped=rank if what == "vanish" else None)
    code, out, err = found[1 - rank]
    assert code == 1 and out == f"{GONE}\n", err
    assert "Traceback" not in err
    assert {"kill": found[rank][0] == -9, "fail": "its own message" in found[rank][2], "vanish": True}[what]
