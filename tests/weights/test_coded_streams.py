"""Two streams and two buffers: nothing is read before it is written, and nothing is overwritten while it is read.

A processor executes at once what a GPU queues, so wrong results do not show there. Here the streams are records: every
decoding and every use of a decoded weight is an access to memory at a point of its stream, waiting orders the points,
and two accesses to the same bytes, one of which writes, must be ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum.kernels.huffman.encoder import encode
from modicum.weights import coded as coded_module
from modicum.weights import lanes
from modicum.weights.coded import CodedWeights, Group, Place

WIDTH = 32
Clock = dict["Stream", int]


class Race(AssertionError):
    """Two accesses that no stream orders."""


@dataclass(eq=False)
class Stream:
    """What has been queued, and of which points of all streams it is known that they lie before."""

    name: str
    clock: Clock = field(default_factory=dict)

    def step(self) -> tuple[Stream, int]:
        """One more thing is queued."""
        self.clock[self] = self.clock.get(self, 0) + 1
        return self, self.clock[self]

    def learn(self, clock: Clock) -> None:
        for stream, time in clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)

    def wait_stream(self, other: Stream) -> None:
        self.learn(other.clock)

    def wait_event(self, event: Event) -> None:
        assert event.clock is not None, "an event that nobody recorded orders nothing"
        self.learn(event.clock)


@dataclass(eq=False)
class Event:
    clock: Clock | None = None

    def record(self, stream: Stream) -> None:
        stream.step()
        self.clock = dict(stream.clock)


@dataclass
class Access:
    first: int
    last: int
    writes: bool
    stream: Stream
    time: int


class Streams:
    """The part of `torch.cuda` that lanes use, and the ledger of all accesses."""

    Event = Event

    def __init__(self) -> None:
        self.main = Stream("main")
        self.current = self.main
        self.made: list[Stream] = []
        self.ledger: list[Access] = []
        self.ahead = 0
        self.kept: list[Tensor] = []  # memory whose address is in the ledger must not be given to others

    def Stream(self, device: torch.device) -> Stream:
        self.made.append(Stream(f"side {len(self.made)}"))
        return self.made[-1]

    def current_stream(self, device: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def touch(self, tensor: Tensor, writes: bool) -> None:
        """Enter an access by the current stream.

        Raises:
            Race: an earlier one is not known to be over.
        """
        stream, time = self.current.step()
        first = tensor.data_ptr()
        new = Access(first, first + tensor.nbytes, writes, stream, time)
        for old in self.ledger:
            overlap = old.first < new.last and new.first < old.last
            if overlap and (old.writes or new.writes) and stream.clock.get(old.stream, 0) < old.time:
                raise Race(f"{stream.name} {'writes' if writes else 'reads'} beside {old.stream.name}")
        self.ledger.append(new)
        self.kept.append(tensor)


class Layer(nn.Module):
    """A linear layer that says when it reads its weight."""

    def __init__(self, streams: Streams, rows: int = WIDTH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, WIDTH).to(torch.bfloat16) * 0.1, requires_grad=False)
        self.__dict__["streams"] = streams

    def forward(self, x: Tensor) -> Tensor:
        self.streams.touch(self.weight, writes=False)
        return torch.tanh(x @ self.weight.t())


class Nested(nn.Module):
    """A block whose middle is a group of its own, like the experts of a mixture; it reads its weight around it."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH).to(torch.bfloat16) * 0.1, requires_grad=False)
        self.inner = Layer(streams)
        self.__dict__["streams"] = streams

    def forward(self, x: Tensor) -> Tensor:
        for step in (lambda x: x, self.inner, lambda x: x):
            self.streams.touch(self.weight, writes=False)
            x = step(torch.tanh(x @ self.weight.t()))
        return x


def encoded(modules: dict[str, nn.Module], streams: Any, dtype: torch.dtype) -> CodedWeights:
    """Take the weights of modules out and put codes in."""
    groups = []
    for name, module in modules.items():
        weight = module.get_parameter("weight")
        arrays = encode([weight.detach()])
        assert arrays is not None
        for key, array in arrays.tensors().items():
            module.register_buffer(key, array)
        del module._parameters["weight"]
        place = Place(module, "weight", tuple(weight.shape), f"{name}.weight")
        groups.append(Group(name, module, torch.bfloat16, dtype, [(module, (place,))]))
    return CodedWeights(groups, streams)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Records; decoding is an access that writes."""
    found, decode, decoded = Streams(), coded_module.decode, Group.decoded

    def decoding(prepared: Any, out: Tensor | None = None, threads: int = 1) -> Tensor:
        flat = decode(prepared, out, threads)
        found.touch(flat, writes=True)
        return flat

    def casting(self: Group, *room: Any) -> Tensor:
        flat = decoded(self, *room)
        found.touch(flat, writes=True)
        found.ahead += found.current in found.made
        return flat

    monkeypatch.setattr(coded_module, "decode", decoding)
    monkeypatch.setattr(Group, "decoded", casting)
    return found


def chain(streams: Streams, rows: tuple[int, ...] = (WIDTH,) * 5) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {f"layers.{i}": Layer(streams, n) for i, n in enumerate(rows)}


def run(modules: Any, x: Tensor | None = None) -> Tensor:
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16) if x is None else x
    for module in modules:
        y = module(x)
        x = y if y.shape == x.shape else x
    return y


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_passes_are_ordered_and_decode_ahead(streams: Streams, dtype: torch.dtype) -> None:
    modules = chain(streams)
    wanted = run(modules.values())
    encoded(modules, streams, dtype)
    x = torch.ones(2, WIDTH, dtype=dtype)
    for _ in range(3):
        found = run(modules.values(), x)
        if dtype == torch.bfloat16:
            assert torch.equal(found, wanted)
    assert streams.ahead == 2 * 5  # the first pass shows what follows what
    assert len(streams.made) == 1


def test_groups_of_growing_size(streams: Streams) -> None:
    modules = chain(streams, (WIDTH, 2 * WIDTH, 3 * WIDTH, WIDTH, 5 * WIDTH))
    wanted = run(modules.values())
    encoded(modules, streams, torch.bfloat16)
    for _ in range(3):
        assert torch.equal(run(modules.values()), wanted)


def test_a_group_inside_a_group_does_not_take_its_buffer(streams: Streams) -> None:
    torch.manual_seed(0)
    blocks = {f"blocks.{i}": Nested(streams) for i in range(3)}
    wanted = run(blocks.values())
    modules = {**blocks, **{f"{name}.inner": block.inner for name, block in blocks.items()}}
    encoded(modules, streams, torch.bfloat16)
    for _ in range(3):
        assert torch.equal(run(blocks.values()), wanted)
    assert streams.ahead == 2 * (3 + 3)  # both levels look ahead


def test_a_group_inside_a_group_without_streams() -> None:
    """On a processor, where there is one buffer per level."""
    torch.manual_seed(0)
    blocks = {f"blocks.{i}": Nested(Streams()) for i in range(3)}
    wanted = run(blocks.values())
    encoded({**blocks, **{f"{n}.inner": b.inner for n, b in blocks.items()}}, None, torch.bfloat16)
    assert torch.equal(run(blocks.values()), wanted)


def test_another_order_than_the_last_time(streams: Streams) -> None:
    modules = chain(streams)
    layers = list(modules.values())
    encoded(modules, streams, torch.bfloat16)
    orders = [[0, 1, 2, 3, 4], [4, 2, 0], [0, 0, 1, 1], [3], [0, 1, 2, 3, 4], [2, 2, 2]]
    for order in orders:
        for index in order:
            run([layers[index]])


def test_passes_on_several_streams(streams: Streams) -> None:
    """Whoever calls the model on streams of his own need not know that its buffers are shared."""
    modules = chain(streams)
    encoded(modules, streams, torch.bfloat16)
    others = [streams.Stream(torch.device("cpu")) for _ in range(2)]
    for other in (*others, *others[::-1]):
        with streams.stream(other):
            run(modules.values())
        run(modules.values())


def test_an_aborted_pass_leaves_order_behind(streams: Streams) -> None:
    modules = chain(streams)
    wanted = run(modules.values())
    weights = encoded(modules, streams, torch.bfloat16)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run(modules.values(), torch.ones(2, WIDTH + 1, dtype=torch.bfloat16))
        assert torch.equal(run(modules.values()), wanted)
    assert weights._open == []


def test_weights_that_outlive_the_pass_have_memory_of_their_own(streams: Streams) -> None:
    modules = chain(streams)
    encoded(modules, streams, torch.bfloat16)
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    run(modules.values(), x).float().sum().backward()
    assert len({access.first for access in streams.ledger if access.writes}) == len(modules)
    assert streams.ahead == 0


def test_codes_that_moved_are_decoded_again(streams: Streams) -> None:
    """What was decoded ahead belongs to the codes that were there then."""
    modules = chain(streams)
    encoded(modules, streams, torch.bfloat16)
    run(modules.values())
    first = next(iter(modules.values()))
    other = torch.randn(WIDTH, WIDTH).to(torch.bfloat16)
    arrays = encode([other])
    assert arrays is not None
    for key, array in arrays.tensors().items():
        first._buffers[key] = array
    x = torch.ones(2, WIDTH, dtype=torch.bfloat16)
    assert torch.equal(first(x), torch.tanh(x @ other.t()))


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the computation does not wait": lambda patch: patch.setattr(
        Stream, "wait_event", lambda self, event: self.learn(event.clock) if self.name != "main" else None
    ),
    "the side stream does not wait": lambda patch: patch.setattr(
        Stream,
        "learn",
        lambda self, clock, learn=Stream.learn: learn(self, clock) if "side" not in self.name else None,
    ),
    "nobody tells when weights were used": lambda patch: patch.setattr(
        lanes.Lane, "leave", lambda self: None
    ),
    "one buffer": lambda patch: patch.setattr(
        lanes.Lane, "_room", lambda self, group, slot, room=lanes.Lane._room: room(self, group, self.slots[0])
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_record_notices_what_is_missing(
    fault: str, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    BROKEN[fault](monkeypatch)
    modules = chain(streams)
    encoded(modules, streams, torch.bfloat16)
    with pytest.raises(Race):  # noqa: PT012
        for stream in (streams.main, Stream("another"), streams.main):
            with streams.stream(stream):
                run(modules.values())
