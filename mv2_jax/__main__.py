"""The `mv2` command, and `python -m mv2_jax`."""

import signal
import sys
import threading

if threading.current_thread() is threading.main_thread():
    # Until the command runs there is nothing to clean up, and nobody to say so: Python would print
    # where in an import it was interrupted.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Runs one command; returns the exit code."""
    from mv2_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
