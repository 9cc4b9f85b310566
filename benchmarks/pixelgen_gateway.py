"""A gateway under load for ten minutes: eight nodes in a process of their own, UDP, one packet in five lost.

The nodes send so much that 2,000 packets arrive every second, in bursts of 10 ms, with duplicates, reordering and bit
errors. The gateway runs in this process; a reader takes every frame, another one never reads. Measured are packets in
and out, frames, the share of one processor, the time from the last packet of a frame to its reader, and resident
memory every second. Writes JSON to results/ and prints it without the memory curve.

    python benchmarks/pixelgen_gateway.py [--seconds 600] [--rate 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import time
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from modicum.apps.pixelgen.gateway import CompletedFrame, Gateway, KnownNode, listening
from modicum.apps.pixelgen.modes import QVGA
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.framing import Framing

NODES = 8
AIR = Channel(loss=0.2, duplicates=0.05, jitter=30, bit_errors=0.01)
FRAMING = Framing(interleave=True, parity=16)
BURST = 0.01
KEYS = [bytes([node + 1]) for node in range(NODES)]


def scene(node: int) -> np.ndarray:
    """The picture that a node sends all the time, uint8 [244, 324]."""
    return np.random.default_rng(node).integers(0, 256, QVGA.shape, dtype=np.uint8)


def send(port: int, rate: int, seconds: float) -> None:
    """All nodes: `rate` packets per second in turn, whatever the air leaves over."""
    way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    airs, number = [AIR.open(node) for node in range(NODES)], 0
    begun, sent = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        frames = [FRAMING.packets(scene(node), node, number, KEYS[node]) for node in range(NODES)]
        arrived = [air.carry(packets) for air, packets in zip(airs, frames, strict=True)]
        for turn in zip_longest(*arrived):
            for packet in filter(None, turn):
                way.sendto(packet, ("127.0.0.1", port))
                sent += 1
                if sent % int(rate * BURST) == 0:
                    time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
        number = (number + 1) % 65_536


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def run(rate: int, seconds: float) -> dict[str, Any]:
    """Listen while the nodes send."""
    gateway = Gateway(dict(enumerate(map(KnownNode, KEYS))))
    scenes = [scene(node) for node in range(NODES)]
    known: list[float] = []
    waits: list[float] = []
    wrong, memory = 0, []

    async def read(frames: Any) -> None:
        nonlocal wrong
        frame: CompletedFrame
        async for frame in frames:
            waits.append(time.monotonic() - frame.time)
            known.append(float(frame.mask.mean()))
            wrong += not np.array_equal(frame.frame[frame.mask], scenes[frame.node][frame.mask])

    async with listening(gateway, "127.0.0.1", 0) as (_, port):
        with gateway.subscribe() as frames, gateway.subscribe() as unread:
            reader = asyncio.create_task(read(frames))
            nodes = multiprocessing.get_context("spawn").Process(target=send, args=(port, rate, seconds))
            nodes.start()
            processor, begun = time.process_time(), time.monotonic()
            while nodes.is_alive():
                await asyncio.sleep(1)
                memory.append(resident())
            spent, elapsed = time.process_time() - processor, time.monotonic() - begun
            await asyncio.sleep(1.5)  # the last frames time out
            frames.close()
            await reader
    counts = [vars(one) for one in gateway.statistics().values()]
    total = {name: sum(one[name] for one in counts) for name in counts[0]}
    settled = memory[len(memory) // 10 :]
    return {
        "seconds": elapsed,
        "packets_per_second": (total["packets"] + total["damaged"] + total["refused"]) / elapsed,
        "statistics": total,
        "wrong_frames": wrong,
        "frames_read": len(known),
        "missed_by_the_reader": frames.dropped,
        "missed_by_one_who_never_reads": unread.dropped,
        "mean_known": float(np.mean(known)),
        "processor_share": spent / elapsed,
        "wait_median": float(np.median(waits)),
        "wait_max": max(waits),
        "memory_first_tenth_max": max(memory[: len(memory) // 10 + 1]),
        "memory_rest_max": max(settled),
        "memory_last": memory[-1],
        "memory": memory,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=int, default=2000)
    options = parser.parse_args()
    found = asyncio.run(run(options.rate, options.seconds))
    now = datetime.now()
    found |= {
        "date": now.isoformat(timespec="minutes"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    found |= {
        "load_average": os.getloadavg(),
        "nodes": NODES,
        "channel": AIR.model_dump(),
        "rate": options.rate,
    }
    path = Path(__file__).parent / "results" / f"pixelgen-gateway-{now:%Y-%m-%d-%H%M}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "memory"}, indent=1))


if __name__ == "__main__":
    main()
