"""Removes a folder of plaintext once its owner is gone: `python -I -S _reaper.py FOLDER`.

Its standard input is a pipe that only the owner holds open, so its end means that the owner died or
is done. It imports next to nothing, knows nothing but the folder's path, and takes no signal but
SIGKILL: Ctrl-C in a terminal must not end it before its work.
"""

import os
import signal
import sys


def main(folder: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    remove(folder)


def remove(folder: str) -> bool:
    """Remove a folder and all in it, as far as it can be; follows no link. Whether it is gone."""
    try:
        os.chmod(folder, 0o700)  # noqa: PTH101 - pathlib would double the start-up time
        with os.scandir(folder) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    remove(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
