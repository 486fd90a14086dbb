"""A client on the `websockets` library: several WebSockets that send in bursts, and ask by pings of
their own whether the server lives. Fails if an answer is missing, comes twice, or out of order; ends
with the end of its input."""

import asyncio
import sys

import websockets

DEADLINE_S = 60
SOCKETS = 4
BURST = 4


async def talk(uri, ended):
    generations, number = set(), 0
    # Its pings must be answered in time, too.
    async with websockets.connect(uri, ping_interval=0.05, ping_timeout=20) as socket:
        while not ended.is_set():
            texts = [f"message {number + one}" for one in range(1, BURST + 1)]
            for text in texts[:-1]:
                await socket.send(text)
            # An iterable is sent in fragments.
            await socket.send([texts[-1][:4], texts[-1][4:]])
            for text in texts:
                number += 1
                answer = await asyncio.wait_for(socket.recv(), DEADLINE_S)
                first, generation, rest = answer.split(" ", 2)
                assert (first, rest) == (str(number), text), f"{answer!r} to {text!r}"
                generations.add(generation)
            await asyncio.sleep(0.005)
    return number, len(generations)


async def main(uri):
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    talks = await asyncio.gather(*[talk(uri, ended) for _ in range(SOCKETS)])
    print(f"messages={sum(number for number, _ in talks)}")
    print(f"generations={min(seen for _, seen in talks)}")


asyncio.run(main(sys.argv[1]))
