from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixelmemory import StoreLockedError
from pixelmemory.store.lock import StoreLock

HOLDER = """
import sys
from pathlib import Path
from pixelmemory.store.lock import StoreLock
lock = StoreLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_handle_of_the_same_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    lock = StoreLock.acquire(path)
    with pytest.raises(StoreLockedError) as caught:
        StoreLock.acquire(path)
    assert (caught.value.path, caught.value.pid) == (path, os.getpid())
    assert repr(lock).endswith("held>")
    lock.release()
    lock.release()
    assert repr(lock).endswith("released>")
    StoreLock.acquire(path).release()
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLockedError, match=str(holder.pid)) as caught:
            StoreLock.acquire(path)
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        StoreLock.acquire(path).release()
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_a_lock_without_a_readable_pid_is_still_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    lock = StoreLock.acquire(path)
    path.write_text("")
    with pytest.raises(StoreLockedError, match="another process") as caught:
        StoreLock.acquire(path)
    assert caught.value.pid is None
    lock.release()


FORK = """
import os, sys
from pathlib import Path
from pixelmemory import StoreLockedError
from pixelmemory.store.lock import StoreLock

def free():
    try:
        StoreLock.acquire(path).release()
    except StoreLockedError:
        return False
    return True

path = Path(sys.argv[1])
lock = StoreLock.acquire(path)
before, after = os.pipe()
if (child := os.fork()) == 0:
    lock.release()  # must not let go of the parent's lock
    os._exit(free())
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, "the child released or got the parent's lock"
assert not free(), "the lock did not survive the child"

if (child := os.fork()) == 0:
    os.close(after)
    os.read(before, 1)  # lives on, with whatever it inherited
    os._exit(0)
lock.release()
assert free(), "a child that lives on keeps the lock"
lock = StoreLock.acquire(path)
os.close(after)
os.wait()
"""


def test_forks_neither_release_nor_keep_the_lock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "LOCK")], timeout=400, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


ORPHAN = """
import os, sys, time
from pathlib import Path
from pixelmemory.store.lock import StoreLock

lock = StoreLock.acquire(Path(sys.argv[1]))
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""


def test_a_killed_owner_frees_the_lock_though_its_child_lives(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    owner = subprocess.Popen([sys.executable, "-c", ORPHAN, str(path)], stdin=subprocess.PIPE)
    assert owner.stdin is not None
    try:
        assert owner.wait(30) == -9
        StoreLock.acquire(path).release()
    finally:
        owner.stdin.close()  # the child ends


def test_of_many_that_race_exactly_one_wins(tmp_path: Path) -> None:
    script = HOLDER.replace("lock = ", "\ntry:\n    lock = ").replace(
        'print("held"', 'except Exception:\n    print("refused", flush=True)\n    raise SystemExit\nprint("held"'
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "LOCK")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    answers = []
    for racer in racers:
        assert racer.stdout is not None
        answers.append(racer.stdout.readline().strip())
    for racer in racers:
        racer.communicate(timeout=400)
    assert sorted(answers) == ["held", *["refused"] * 4]
