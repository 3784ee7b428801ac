"""A progress bar a stage on standard error, compilation named as such."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

NAMES = {
    "t2i": "T2I picture",
    "i2v": "I2V keyframes",
    "v2v": "V2V detail",
    "vfi": "VFI in-between",
    "maps": "attention maps",
}
LOADING = "loading"
_LAST = "vfi"
_COMPILING = "compiling "
_ONCE = ", compiling (once)"
_WIDTH = max(map(len, NAMES.values())) + len(_ONCE)


class Forecast:
    """Says how long many batches will take: before the first, as far as it is known, and after the
    second, which compiles nothing, as it was measured.

    Args:
        say: prints a line.
        seconds: of one sample, where somebody measured it, on two CPU cores.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        samples: int,
        batches: int,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._batches, self._clock = say, batches, clock
        self._done, self._made, self._began = 0, 0, clock()
        known = f", about {_minutes(samples * seconds)} on two CPU cores" if seconds else ""
        say(f"{samples} videos in {batches} batches{known}")

    def done(self, made: bool = True) -> None:
        """A batch is done: made now, or there from before."""
        self._done, self._made, now = self._done + 1, self._made + made, self._clock()
        left = self._batches - self._done
        if made and self._made == 2 and left:
            self._say(f"about {_minutes(left * (now - self._began))} to go")
        self._began = now


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Bars:
    """Callable as `progress(stage, done, total)`, the callback that a cascade takes.

    `stage` is "t2i", "i2v", "v2v" or "vfi", or one of these after "compiling ". A stage has one
    bar, which says so while its programs are compiled; it ends where the next begins, or the same
    one begins anew. Between calls a clock keeps it moving, since a compilation may take a minute
    without a word. `prefix` goes before every name, such as "2/3 " for the second of three videos.
    `silent` bars show nothing: of several processes one speaks.
    """

    def __init__(
        self, stream: TextIO | None = None, tick: float = 0.5, *, silent: bool = False
    ) -> None:
        self._silent = silent
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._stage, self._done = "", False
        self.prefix = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # On a terminal only: a log file would get a line a tick.
        self._tick = tick if self._stream.isatty() and not silent else None

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
        if self._silent:
            return
        name = stage.removeprefix(_COMPILING)
        compiling = stage != name
        with self._lock:
            again = not compiling and self._bar is not None and done < self._bar.n
            if name != self._stage or self._bar is None or again:
                self._close()
                self._open(name, total)
            self._bar.set_description_str(self._text(compiling and done < total), refresh=False)
            if compiling:
                self._bar.refresh()
                return
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            self._done = done >= total
            if self._done and name == _LAST:  # what is printed next begins a line
                self._close()
            elif self._done:
                self._bar.refresh()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Says that weights and libraries are loaded, on a terminal: a log has no use for it."""
        if self._tick is None:
            yield
            return
        with self._lock:
            self._bar = tqdm(desc="loading", file=self._stream, bar_format="{desc} {elapsed}",
                             leave=False)  # fmt: skip
            self._stage, self._done = LOADING, False
        try:
            yield
        finally:
            with self._lock:
                self._close()

    def say(self, line: str) -> None:
        """A line of its own, below the bars."""
        if not self._silent:
            self.end()
            print(line, file=self._stream, flush=True)

    def end(self) -> None:
        """Ends the line of the bar: something is to be printed."""
        with self._lock:
            self._close()

    def _text(self, compiling: bool) -> str:
        name = NAMES.get(self._stage, self._stage)
        return f"{self.prefix}{name + _ONCE * compiling:<{_WIDTH}}"

    def _open(self, stage: str, total: int) -> None:
        self._stage, self._done = stage, False
        self._bar = tqdm(
            desc=self._text(False),
            total=total,
            file=self._stream,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}",
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
                if self._bar is not None and not self._done:
                    self._bar.refresh()
