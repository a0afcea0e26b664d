"""What Ctrl-C must not tear: the start of a thread, and finalizers.

Python raises KeyboardInterrupt between any two steps of the main thread, and nowhere else.
"""

from __future__ import annotations

import signal
import threading
from _thread import start_new_thread
from collections.abc import Callable
from time import sleep

__all__ = ["launch", "start_new_thread", "uninterrupted"]

#: how long after a finalizer Ctrl-C comes again
PRESSED_AGAIN_SECONDS = 0.01


def launch(run: Callable[[], object], name: str) -> None:
    """Run ``run`` on a daemon thread. To be called as ``start_new_thread(launch, (run, name))``.

    That is one step, which Ctrl-C comes before or after. ``Thread.start`` is many: where it is interrupted, the new
    thread may wait for ever for a lock that the old one has left behind.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system gives no second one
        run()


def uninterrupted(run: Callable[[], None]) -> None:
    """Run ``run``, which may be begun again, to its end in a finalizer.

    Python drops what a finalizer raises: Ctrl-C is pressed again for whoever the finalizer has interrupted.
    """
    was_pressed = False
    while True:
        try:
            run()
            break
        except KeyboardInterrupt:
            was_pressed = True
    if was_pressed:
        start_new_thread(_press_again, ())


def _press_again() -> None:
    sleep(PRESSED_AGAIN_SECONDS)
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # unlike interrupt_main it ends a system call, too
