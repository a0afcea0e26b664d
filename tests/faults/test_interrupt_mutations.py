"""mutation gate: bugs of what Ctrl-C does."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

STORM = "faults/test_interrupts.py::test_keys_at_any_moment"
OBSTACLES = "faults/test_interrupts.py::test_a_key_ends_a_call_that_would_not_end"

MUTATIONS = (
    Mutation(
        "an interrupt is swallowed",
        "loop_thread",
        "            self._post(call)\n            call.wait()\n        except BaseException:\n",
        "            self._post(call)\n"
        "            try:\n                call.wait()\n"
        "            except KeyboardInterrupt:\n                call.wait()\n"
        "        except BaseException:\n",
        (OBSTACLES,),
    ),
    Mutation(
        "an interrupted call is not cancelled",
        "loop_thread",
        "            call.cancelled = True\n            try:\n",
        "            try:\n",
        ("engine/test_processes.py::test_ctrl_c_cancels_a_call_that_waits",),
    ),
    Mutation(
        "a close waits for the drain in spite of an interrupt",
        "sync",
        "                self._leave(INTERRUPTED_SECONDS)\n                raise\n            except BaseException:\n",
        "                self._call(self._memory.aclose)\n                raise\n            except BaseException:\n",
        (OBSTACLES,),
    ),
    Mutation(
        "the end of a block waits for the drain after an interrupt in it",
        "sync",
        "self._close(drain=kind is None or not issubclass(kind, KeyboardInterrupt))",
        "self._close(drain=True)",
        (OBSTACLES,),
    ),
    Mutation(
        "an open that is interrupted is not abandoned",
        "engine/opening",
        "            with self._lock:\n                self._abandoned = True\n",
        "            with self._lock:\n                self._abandoned = False\n",
        (OBSTACLES,),
    ),
    Mutation(
        "a finalizer that is interrupted lets go of nothing",
        "interrupts",
        "        except KeyboardInterrupt:\n            was_pressed = True\n",
        "        except KeyboardInterrupt:\n            break\n",
        ("engine/test_processes.py::test_ctrl_c_in_a_finalizer_comes_again",),
    ),
    Mutation(
        "a finalizer swallows an interrupt",
        "interrupts",
        "    if was_pressed:\n        start_new_thread(_press_again, ())\n",
        "",
        ("engine/test_processes.py::test_ctrl_c_in_a_finalizer_comes_again",),
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
