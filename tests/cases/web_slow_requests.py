"""A request to the queue whose body never ends is not waited for without end.

Each would hold a file descriptor, and at the process's limit nobody else could connect. Waits 65 s:
a limit of a minute passes. (A limit that the server in front has would not be seen here.)
"""

import asyncio
import sys
from pathlib import Path

from fastvideo_lightning.serve.middleware import Guard

JOIN = {"type": "http", "path": "/gradio_api/queue/join", "method": "POST", "headers": []}


async def main() -> int:
    first = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        if not first:
            await asyncio.sleep(10**6)
        return first.pop()

    async def send(message):
        pass

    async def app(scope, receive, send):
        pass

    call = Guard(app, folder=Path.cwd(), takes_uploads=False)(JOIN, receive, send)
    try:
        await asyncio.wait_for(call, 65)
    except TimeoutError:
        print("still waiting after 65 s")
        return 1
    print("ended by itself")
    return 0


sys.exit(asyncio.run(main()))
