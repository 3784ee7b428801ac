"""A progress bar a stage on standard error, compilation named as such."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

NAMES = {"t2i": "T2I picture", "i2v": "I2V keyframes", "v2v": "V2V detail", "vfi": "VFI in-between"}
_COMPILING = "compiling "
_WIDTH = 14 + len(_COMPILING)


class Bars:
    """Callable as `progress(stage, done, total)`, the callback that a cascade takes.

    `stage` is "t2i", "i2v", "v2v" or "vfi", or one of these after "compiling ". A bar opens at a
    stage's first call and closes when it is done. Between calls a clock keeps it moving, since a
    compilation may take a minute without a word. `prefix` goes before every name, such as "2/3 "
    for the second of three videos.
    """

    def __init__(self, stream: TextIO | None = None, tick: float = 0.5):
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._stage = ""
        self.prefix = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # On a terminal only: a log file would get a line a tick.
        self._tick = tick if self._stream.isatty() else None

    def __enter__(self) -> Bars:
        if self._tick is not None:
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        with self._lock:
            self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            if stage != self._stage or self._bar is None:
                self._close()
                self._open(stage, total)
            self._bar.update(done - self._bar.n)
            if done >= total:
                self._close()

    def _open(self, stage: str, total: int) -> None:
        compiling = stage.startswith(_COMPILING)
        name = stage.removeprefix(_COMPILING)
        text = f"compiling {name.upper()}" if compiling else NAMES.get(name, name)
        # A compilation has no steps to count: only its time is worth showing.
        form = (
            "{desc} {elapsed}"
            if compiling
            else "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}"
        )
        self._stage = stage
        self._bar = tqdm(
            desc=f"{self.prefix}{text:<{_WIDTH}}",
            total=total,
            file=self._stream,
            bar_format=form,
            dynamic_ncols=True,
            mininterval=0.1 if self._tick is not None else 5.0,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
