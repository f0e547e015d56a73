"""A tiny server for the tests of process supervision: it accepts connections on a port and does nothing else.

    python server.py PORT [BEHAVIOUR]

BEHAVIOUR: "stubborn" ignores SIGTERM, "deaf" never listens, "broken" says why and ends, "reads" takes its
time to start, and says when it reads its files again.
"""

from __future__ import annotations

import signal
import socket
import sys
import time


def main() -> None:
    port, behaviour = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if behaviour == "broken":
        sys.exit("the flux is not calibrated")
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "reads":
        time.sleep(0.3)
        signal.signal(signal.SIGHUP, lambda *_: print("reads again", flush=True))
    if behaviour == "deaf":
        signal.pause()
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            server.accept()[0].close()


if __name__ == "__main__":
    main()
