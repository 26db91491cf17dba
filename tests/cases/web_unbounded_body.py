"""A request to the queue is not kept in memory in full, however large it is.

A right one is some kB. `--max-file-size` bounds uploads alone, and a page of another site can send
this one: text needs no preflight, and the body is read before anything is checked.
"""

import asyncio
import sys
import time
from pathlib import Path

from fastvideo_lightning.serve.middleware import Guard

JOIN = {"type": "http", "path": "/gradio_api/queue/join", "method": "POST", "headers": []}


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def send_mib(mebibytes: int) -> tuple[float, float, int]:
    piece, left, taken, status = b" " * 65536, mebibytes * 16, 0, []

    async def receive():
        nonlocal left, taken
        left -= 1
        taken += 65536
        return {"type": "http.request", "body": bytes(piece), "more_body": left > 0}

    async def send(message):
        status.append(message.get("status"))

    guard = Guard(app, folder=Path.cwd(), takes_uploads=False)
    began = time.perf_counter()
    asyncio.run(guard(JOIN, receive, send))
    return taken / 2**20, time.perf_counter() - began, status[0]


results = [send_mib(n) for n in (8, 32, 128)]
for taken, elapsed_s, status in results:
    print(f"read {taken:.0f} MiB into memory in {elapsed_s:.2f} s, answer {status}")
sys.exit(results[-1][0] > 16)
