"""A process that dies at a line: `python -m tests.unit.releases.crashing DIRECTORY WHAT STEP`, lines apart.

It forks before anything of asyncio or a thread is there, once for each line of the package that ``WHAT`` runs
through; what each child has left is then looked at in another child. It writes one line of JSON for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import provisioning.releases
from tests.unit.releases.making import add, files_in, opened, registry_in

PACKAGE = str(Path(provisioning.releases.__file__).parent)
DIED = 9


async def prepare(directory: Path) -> None:
    async with registry_in(directory) as registry, opened(registry, directory) as releases:
        await add(releases, "kept", firmware=b"kept")


async def act(directory: Path, what: str, die: Callable[[], None]) -> None:
    async with registry_in(directory) as registry, opened(registry, directory) as releases:
        if what == "remove":
            await add(releases, "new", firmware=b"new")
        die()
        if what == "remove":
            await releases.remove("new")
        else:
            await add(releases, "new", firmware=b"new")


async def look(directory: Path) -> dict[str, Any]:
    """What is there at the next start, and whether the operation can be done again."""
    async with registry_in(directory) as registry, opened(registry, directory) as releases:
        names = sorted(record.name for record in releases.all() if not record.default)
        contents = [(await releases.load(releases.show(name))).firmware.content.decode() for name in names]
        files = len(files_in(directory))
        _, created = await add(releases, "new", firmware=b"new")
        return {"names": names, "contents": contents, "files": files, "created": created}


def dying_at(line: int) -> Callable[[], None]:
    """From when it is called on, this process dies at the so many-th line of the package, in any thread."""
    left, active = line, False

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and active:
            left -= 1
            if left == 0:
                os._exit(DIED)
        return trace

    def begin() -> None:
        nonlocal active
        active = True

    threading.settrace(trace)
    sys.settrace(trace)
    return begin


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Exit code and result of ``work`` in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or "null")


def main(directory: Path, what: str, step: int) -> None:
    template = directory / "template"
    template.mkdir()
    assert in_child(lambda: asyncio.run(prepare(template)))[0] == 0
    line = 1 - step
    while True:
        line += step
        place = directory / str(line)
        shutil.copytree(template, place)
        code, _ = in_child(lambda: asyncio.run(act(place, what, dying_at(line))))  # noqa: B023 (run at once)
        assert code in (0, DIED), code
        looked, found = in_child(lambda: asyncio.run(look(place)))  # noqa: B023
        print(json.dumps({"line": line, "died": code == DIED, "looked": looked, "found": found}), flush=True)
        shutil.rmtree(place)
        if code == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
