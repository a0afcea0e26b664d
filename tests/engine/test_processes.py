"""A process that uses a store: what it prints, opens and leaves behind, Ctrl-C, and its end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pixelmemory import StoreError
from tests.harness.engine_tools import answer_of, open_memory, pixeltable_home, run_script

needs_proc = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads /proc, as Linux has it")

# ------------------------------------------------------------------------------------------------ an ordinary process


@needs_proc
def test_an_ordinary_run_prints_nothing_listens_nowhere_and_keeps_its_files_to_the_owner(
    tmp_path: Path, store_name: str, minilm_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model, and a Pixeltable that is made by this very run."""
    script = """
        import json, os, sys
        from pixelmemory import Memory, Options
        from tests.harness.engine_tools import listening_ports
        os.umask(0)
        home, name, model, answer = sys.argv[1:]
        with Memory(name, {"kind": str}, model, options=Options(home=home, segment_bytes_max=4096)) as memory:
            memory_id = memory.add_entry("Ada prefers tea", metadata={"kind": "preference"})
            memory.add_entries([{"content": f"note {n}"} for n in range(50)], "another namespace")
            memory.add_entries([{"content": f"more {n}"} for n in range(50)], "another namespace")
            found = memory.search(query="what does Ada drink?")
            memory.update_memory(memory_id, content="Ada prefers coffee")
            memory.delete_memory(memory_id)
            memory.get_namespace_table("default_namespace")
            memory.flush()
            ports = listening_ports()
        with Memory(name, {"kind": str}, model, options=Options(home=home, segment_bytes_max=4096)) as memory:
            answer_now = [ports, listening_ports(), memory.count(), found[0]["content"]]
        with open(answer, "w") as file:
            json.dump(answer_now, file)
    """
    for name in ("PIXELTABLE_VERBOSITY", "XDG_RUNTIME_DIR", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    with pixeltable_home() as pixeltable:
        done = run_script(
            script,
            tmp_path / "a" / "home",
            store_name,
            minilm_path,
            tmp_path / "answer",
            PIXELTABLE_HOME=str(pixeltable),
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "answer").read_text()) == [[], [], 100, "Ada prefers tea"]
    paths = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len([path for path in paths if path.suffix == ".log"]) > 2
    assert {"LOCK", "MANIFEST", "vectors", "log"} <= {path.name for path in paths}
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in paths}
    assert modes == {str(path): "0o700" if path.is_dir() else "0o600" for path in paths}


@needs_proc
def test_pixeltables_server_is_kept_where_it_is_wanted(tmp_path: Path, store_name: str) -> None:
    script = """
        import json, sys
        from tests.harness.engine_tools import listening_ports, open_memory
        with open_memory(*sys.argv[1:], keep_pixeltable_http_server=True):
            print(json.dumps(listening_ports()))
    """
    assert len(answer_of(run_script(script, tmp_path, store_name))) == 1


def test_a_home_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path, store_name: str) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="file"):
            open_memory(home, store_name)


# ----------------------------------------------------------------------------------------------- models that are not


def test_a_model_that_cannot_be_loaded_is_an_error_soon_and_makes_no_store(tmp_path: Path, store_name: str) -> None:
    """Not there, and an id that is not on this machine."""
    script = """
        import json, os, sys
        from tests.harness.engine_tools import options_at
        from pixelmemory import Memory, ModelLoadError
        home, name, *models = sys.argv[1:]
        outcome = []
        for model in models:
            try:
                Memory(name, None, model, options=options_at(home))
            except ModelLoadError as error:
                outcome.append([error.model, bool(error.remedy), sorted(os.listdir(os.path.join(home, name)))])
        print(json.dumps([outcome, "pixeltable" in sys.modules]))
    """
    models = [str(tmp_path / "nowhere"), "nobody/nothing-of-this-name"]
    done = run_script(script, tmp_path / "home", store_name, *models, HF_HUB_OFFLINE="1")
    outcome, pixeltable_was_loaded = answer_of(done)
    assert outcome == [[model, True, ["LOCK"]] for model in models]
    assert not pixeltable_was_loaded
    assert done.stdout.count("\n") == 1
    with open_memory(tmp_path / "home", store_name) as memory:  # nothing of them stands in the way
        assert memory.count() == 0


# ----------------------------------------------------------------------------------------------- the end of a process


@pytest.mark.parametrize("end", ["sys.exit(0)", "open_memory(home, name + '_2').close()"], ids=["exit", "end"])
def test_a_process_that_ends_without_close_neither_hangs_nor_loses_anything(
    tmp_path: Path, store_name: str, end: str
) -> None:
    """By ``sys.exit`` among the writes of four threads; or at the script's end, after another store was closed."""
    script = f"""
        import os, sys, threading
        from tests.harness.engine_tools import open_memory, vector
        home, name, acknowledged = sys.argv[1:]
        memory = open_memory(home, name)
        file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        enough = threading.Event()

        def work(number):
            for n in range(100_000):
                os.write(file, (memory.add_entry("x", embedding=vector(n)) + "\\n").encode())
                if n == 30:
                    enough.set()

        for number in range(4):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        enough.wait()
        {end}
    """
    done = run_script(script, tmp_path, store_name, tmp_path / "acknowledged")
    assert done.stdout == ""
    assert "ResourceWarning" not in done.stderr  # as everybody has it, it is not shown
    assert done.returncode == 0, done.stderr
    acknowledged = (tmp_path / "acknowledged").read_text().split()
    assert len(acknowledged) > 30
    with open_memory(tmp_path, store_name) as memory:
        found = {record["memory_id"] for record in memory.search(limit=1_000_000)}
        assert set(acknowledged) <= found
        assert len(found) == memory.count() <= len(acknowledged) + 4


def test_an_async_process_that_ends_without_close_neither_hangs_nor_loses_anything(
    tmp_path: Path, store_name: str
) -> None:
    """The loop ends first; one handle is dropped then, and one is still there at the end."""
    script = """
        import sys
        import anyio
        from tests.harness.engine_tools import async_memory, vector

        home, name = sys.argv[1:]
        handles = []

        async def main(name):
            memory = async_memory(home, name)
            await memory._open()
            handles.append(memory)
            for n in range(20):
                await memory.add_entry(f"{n}", embedding=vector(n))

        anyio.run(main, name, backend="trio")
        handles.clear()
        anyio.run(main, name + "_2", backend="asyncio")
    """
    done = run_script(script, tmp_path, store_name)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Traceback" not in done.stderr
    for name in (store_name, store_name + "_2"):
        with open_memory(tmp_path, name) as memory:
            assert memory.count() == 20


# ------------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_cancels_the_call_and_tears_nothing(tmp_path: Path, store_name: str) -> None:
    """Thirty of them during adds; the store stays usable."""
    script = """
        import json, sys
        from tests.harness.engine_tools import open_memory, vector
        from tests.harness.keys import Keys

        home, name = sys.argv[1:]
        memory = open_memory(home, name)
        keys = Keys(1, (0.004,))
        acknowledged, interrupted = [], []

        def add(number):
            interrupted.append([f"{number}-{n}" for n in range(number % 4 + 1)])
            memory.add_entries([{"content": "x", "memory_id": i, "embedding": vector(number)} for i in interrupted[-1]])
            acknowledged.append(interrupted.pop())

        number = 0
        while keys.arrived < 30:
            number += 1
            keys.during(lambda: add(number))
        keys.stop()
        acknowledged.append([memory.add_entry("usable", embedding=vector(1))])
        found = {record["memory_id"] for record in memory.search(limit=1_000_000)}
        print(json.dumps({
            "swallowed": keys.raised - keys.arrived - keys.dropped,
            "lost": [ids for ids in acknowledged if not set(ids) <= found],
            "torn": [ids for ids in interrupted if found & set(ids) and not set(ids) <= found],
            "foreign": len(found) - sum(map(len, acknowledged)) - sum(len(i) for i in interrupted if set(i) <= found),
            "health": list(memory.health()),
        }))
        memory.close()
    """
    done = run_script(script, tmp_path, store_name)
    assert answer_of(done) == {"swallowed": 0, "lost": [], "torn": [], "foreign": 0, "health": [True, []]}
    assert "Traceback" not in done.stderr


def test_ctrl_c_cancels_a_call_that_waits(tmp_path: Path, store_name: str) -> None:
    """Nothing of it goes on: an add that waited for room is not recorded once there is room."""
    script = """
        import json, sys, threading
        from tests.harness.engine_tools import open_memory, vector
        from tests.harness.keys import Keys

        memory = open_memory(*sys.argv[1:], lag_events_max=1, lag_timeout_seconds=1000.0)
        go_on = threading.Event()
        memory._memory._engine._store.projection.projector.request(go_on.wait)
        memory.add_entry("kept", embedding=vector(1))
        keys = Keys(1, (0.2,))
        interrupted = keys.during(lambda: memory.add_entry("no room", embedding=vector(1)))
        keys.stop()
        go_on.set()
        memory.flush()
        memory.add_entry("after it", embedding=vector(1))
        print(json.dumps([interrupted, [record["content"] for record in memory.search()]]))
        memory.close()
    """
    done = run_script(script, tmp_path, store_name)
    assert answer_of(done) == [True, ["after it", "kept"]]


def test_ctrl_c_in_a_finalizer_comes_again(tmp_path: Path, store_name: str) -> None:
    """Python drops what a finalizer raises; the handle is let go of, and the interrupt arrives outside of it."""
    script = """
        import json, signal, sys, time, warnings
        from tests.harness.engine_tools import open_memory, vector

        warnings.simplefilter("ignore", ResourceWarning)
        home, name = sys.argv[1:]
        memory = open_memory(home, name)
        memory.add_entry("kept", embedding=vector(1))
        inner, presses = memory._memory, []

        class Pressing(type(inner)):
            def __repr__(self):
                if not presses:
                    presses.append(True)
                    signal.raise_signal(signal.SIGINT)
                return super().__repr__()

        inner.__class__ = Pressing
        del inner
        arrived = False
        try:
            memory = None
            time.sleep(60)
        except KeyboardInterrupt:
            arrived = True
        with open_memory(home, name, lag_events_max=5) as memory:  # other options: it is not the old one, shared
            print(json.dumps([arrived, len(presses), memory.count()]))
    """
    done = run_script(script, tmp_path, store_name)
    assert answer_of(done) == [True, 1, 1]
    assert done.stderr == ""


def test_ctrl_c_ends_a_process_that_opens_a_store(tmp_path: Path, store_name: str, minilm_path: str) -> None:
    """As the terminal presses it, while Pixeltable starts or a model loads: what Python says of it, and no more."""
    script = """
        import os, signal, sys, threading
        from pixelmemory import Memory
        from tests.harness.engine_tools import options_at
        home, name, model = sys.argv[1:]
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with Memory(name, None, model, options=options_at(home)) as memory:
            print("open", flush=True)
            memory._memory._engine._store.projection.projector.request(threading.Event().wait)
            memory.add_entry("x")
            memory.search()
    """
    done = run_script(script, tmp_path, store_name, minilm_path)
    assert done.returncode in (-signal.SIGINT, 130)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "Fatal" not in done.stderr
