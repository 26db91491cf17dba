"""Any module, any placement, any order of calls, edits and interrupts: what a plain twin gives.

Each case builds two equal models from a seed, places one of them, and does the same to both. What
they give has equal bits, or the offloaded one refuses in words that the documentation has. After
``detach`` everything is as it would be without offloading.
"""

import copy
import pickle
import random
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from fastvideo_lightning.callbacks import CPUExecution, LayerwiseOffload, ModelOffload, Resident

WIDTH = 4

REFUSALS = re.compile(
    "|".join(
        (
            "is being offloaded",  # pickled, copied, moved, cast
            "is called while every slot is in use",
            "by another kind of tensor",
            "Detach the callback",
        )
    )
)
"""What an offloaded module may say where a plain one computes; docs/offloading.md has each."""

UNFIT = re.compile("share their slots|no list of blocks|no blocks with weights")
"""What a placement may say at ``attach``."""


# What blocks are made of.


class Gain(nn.Module):
    """A parameter without dimensions, one without elements, one of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))
        self.none = nn.Parameter(torch.empty(0, WIDTH))
        self.wide = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.wide.float() + self.none.sum()


class Strided(nn.Module):
    """Tensors that are not contiguous: transposed, with gaps, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH).t())
        self.gaps = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH)[:, ::2])
        self.register_buffer("flat", torch.randn(1).expand(WIDTH), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight @ self.gaps + self.flat


class Tied(nn.Module):
    """One weight in two places, and one that has another's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.b.weight = self.a.weight
        self.c.weight.data = self.c.bias.data.new_empty(WIDTH, WIDTH).normal_()
        self.c.bias = nn.Parameter(self.c.weight.data[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class Cache(nn.Module):
    """Buffers that a forward writes, in every way."""

    def __init__(self, how: str, size: int) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("seen", torch.zeros(size, WIDTH), persistent=how != "assigned")
        self.register_buffer("row", self.seen[0] if how == "through a view" else torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.detach().mean(0)
        if self.how == "in place":
            self.seen.add_(mean)
        elif self.how == "assigned":
            self.seen = self.seen * 0.5 + mean
        elif self.how == "through .data":
            self.seen.data.add_(mean)
        else:
            self.row += mean
        return x + torch.tanh(self.seen).mean(0)


class Normed(nn.Module):
    """Running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x[None], x[None], x[None], need_weights=False)[0][0]


class Recur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


class Writer(nn.Module):
    """A weight that the forward itself changes, as a spectral norm's."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.how == "in place":
                self.weight.mul_(0.5)
            elif self.how == "through .data":
                self.weight.data.mul_(0.5)
            else:
                self.weight = nn.Parameter(self.weight * 0.5)
        return x + self.weight.detach()


class Given(nn.Module):
    """Gives out views of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + self.position[1], self.position[:3]


PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "nothing": nn.Tanh,
    "gain": Gain,
    "strided": Strided,
    "tied": Tied,
    "in place": lambda: Cache("in place", 1),
    "assigned": lambda: Cache("assigned", 1),
    "through .data": lambda: Cache("through .data", 1),
    "through a view": lambda: Cache("through a view", 2),
    "large, in place": lambda: Cache("in place", 70_000),
    "large, assigned": lambda: Cache("assigned", 70_000),
    "large, through .data": lambda: Cache("through .data", 70_000),
    "normed": Normed,
    "attention": Attend,
    "recurrent": Recur,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "written in place": lambda: Writer("in place"),
    "written through .data": lambda: Writer("through .data"),
    "written by assignment": lambda: Writer("by assignment"),
    "given out": Given,
    "nested": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(Gain())),
}


class Block(nn.Module):
    """Calls its parts one after the other; its own weight is added."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PARTS[kind]() for kind in kinds)
        self.shift = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        given = []
        for part in self.parts:
            x = part(x)
            if isinstance(x, tuple):
                given.append(x[1])
                x = x[0]
        return torch.tanh(x) + self.shift, given


class Model(nn.Module):
    """Block lists with layers between them, called in an order of its own."""

    def __init__(self, lists: list[list[list[str]]], order: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.lists = nn.ModuleList(nn.ModuleList(Block(kinds) for kinds in one) for one in lists)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        kept = []
        for number, at, part in self.order:
            block = pick(pick(self.lists, number), at)
            if part < 0:
                x, given = block(x)
                kept += given
            else:
                out = pick(block.parts, part)(x)
                x = torch.tanh(out[0] if isinstance(out, tuple) else out)
        for view in kept:
            x = x + view.mean(0)
        return self.head(x)


def pick(items, number: int):
    return items[number % len(items)]


# A case.

kinds = st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3)
lists = st.lists(st.lists(kinds, min_size=1, max_size=5), min_size=1, max_size=3)
number = st.integers(0, 7)
orders = st.lists(
    st.tuples(number, number, st.sampled_from([-1, -1, -1, -1, 0, 1])), min_size=1, max_size=9
)
models = st.tuples(lists, orders | st.none())

placements = st.one_of(
    st.builds(
        partial,
        st.just(LayerwiseOffload),
        st.sampled_from(["m", "m.lists"]),
        num_slots=st.integers(1, 3),
        resident_blocks=st.integers(0, 3),
        share_residents=st.booleans(),
        skippable=st.booleans(),
        host_memory=st.sampled_from(["auto", "pageable"]),
    ),
    st.sampled_from([partial(kind, "m") for kind in (ModelOffload, Resident, CPUExecution)]),
)
seconds = st.sampled_from(
    [None, *(partial(kind, "other") for kind in (ModelOffload, LayerwiseOffload, Resident))]
)

modes = st.sampled_from(["grad", "no_grad", "inference"])
errors = st.sampled_from([RuntimeError("it failed"), KeyboardInterrupt()])
edits = st.sampled_from(
    [
        "in place",
        "through .data",
        "another .data",
        "another parameter",
        "another buffer",
        "load_state_dict",
        "load_state_dict(assign=True)",
        "all weights of a block",
        "requires_grad",
        "untied",
    ]
)
operations = st.one_of(
    st.tuples(st.just("call"), modes),
    st.tuples(st.just("call"), modes),
    st.tuples(st.just("call a block"), number, number, modes),
    st.tuples(st.just("call a part"), number, number, number, modes),
    st.tuples(st.just("call other"), modes),
    st.tuples(st.just("backward"), st.just("")),
    st.tuples(st.just("fail"), number, errors, modes),
    st.tuples(st.just("within"), number, st.sampled_from(["state_dict", "copy", "other", "part"])),
    st.tuples(st.just("edit"), edits, st.integers(0, 99)),
    st.tuples(st.just("edit"), edits, st.integers(0, 99)),
    st.tuples(st.just("functional_call"), modes),
    st.tuples(st.just("state_dict"), st.just("")),
    st.tuples(st.just("copy"), st.sampled_from([copy.deepcopy, pickle.dumps])),
    st.tuples(st.just("to"), st.sampled_from([torch.float32, torch.float64])),
    st.tuples(st.just("threads"), st.just("")),
    st.tuples(st.just("begin batch"), st.just("")),
    st.tuples(st.just("end batch"), st.just("")),
    st.tuples(st.just("attach again"), st.just("")),
    st.tuples(st.just("attach again"), placements),
)


class Refused(Exception):
    """The offloaded one said, in words that are documented, that it will not."""


class Twins:
    """Two equal roots, of which one is placed."""

    def __init__(self, model, placement, second, *, number: int = 0) -> None:
        lists, order = model
        self.plain, self.off = (self.make(lists, order, number) for _ in range(2))
        self.both = (self.plain, self.off)
        self.x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
        self.makers = [placement, *([second] if second is not None else [])]
        self.callbacks: list = []
        self.in_batch = False
        self.objects: dict[str, nn.Parameter] = {}

    @staticmethod
    def make(lists, order, number: int) -> nn.Module:
        torch.manual_seed(number)
        in_order = [(i, k, -1) for i, one in enumerate(lists) for k in range(len(one))]
        root = nn.Module()
        root.m = Model(lists, in_order if order is None else order)
        root.other = Model([[["linear"], ["linear"], ["nothing"]]], [(0, i, -1) for i in range(3)])
        return root

    def attach(self) -> None:
        self.note_objects()
        self.callbacks = []
        for make in self.makers:
            callback = make()
            try:
                callback.attach(self.off, "cpu")
            except ValueError as error:
                if UNFIT.search(str(error)):
                    continue
                raise
            self.callbacks.append(callback)

    def note_objects(self) -> None:
        self.objects = dict(self.off.named_parameters(remove_duplicate=False))

    def tell(self, moment: str) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)()

    @property
    def calls_each_once(self) -> bool:
        """Whether a pass calls each block once at most: gradients are summed call by call."""
        model = self.plain.m
        called = [id(pick(pick(model.lists, one), at)) for one, at, _ in model.order]
        return len(set(called)) == len(called)

    def compare(self, do: Callable[[nn.Module], object], *, exactly: bool = True) -> None:
        """Do the same to both: equal bits, the same error, or a refusal."""
        results = []
        for root in (self.off, self.plain):
            try:
                results.append(do(root))
            except (Exception, KeyboardInterrupt) as error:
                if root is self.off and REFUSALS.search(str(error)):
                    raise Refused from error
                results.append(error)
        off, plain = results
        if isinstance(plain, BaseException):
            assert type(off) is type(plain), f"{off!r} in place of {plain!r}"
            return
        if isinstance(off, BaseException):
            raise AssertionError("the plain one computes") from off
        assert_equal(off, plain, rtol=0 if exactly else 1e-4)

    def run(self, operation) -> None:
        name, *arguments = operation
        getattr(self, name.replace(" ", "_"))(*arguments)

    # Operations.

    def call(self, mode: str) -> None:
        def do(root: nn.Module) -> torch.Tensor:
            with in_mode(mode):
                return root.m(self.x)

        self.compare(do)

    def call_a_block(self, one: int, at: int, mode: str) -> None:
        def do(root: nn.Module) -> object:
            with in_mode(mode):
                return pick(pick(root.m.lists, one), at)(self.x)

        self.compare(do)

    def call_a_part(self, one: int, at: int, part: int, mode: str) -> None:
        def do(root: nn.Module) -> object:
            with in_mode(mode):
                return pick(pick(pick(root.m.lists, one), at).parts, part)(self.x)

        self.compare(do)

    def call_other(self, mode: str) -> None:
        def do(root: nn.Module) -> torch.Tensor:
            with in_mode(mode):
                return root.other(self.x)

        self.compare(do)

    def backward(self, _: str) -> None:
        def do(root: nn.Module) -> list[torch.Tensor | None]:
            x = self.x.clone().requires_grad_(True)
            root.m(x).sum().backward()
            grads = [x.grad, *(p.grad for p in root.parameters())]
            root.zero_grad()
            return grads

        self.compare(do, exactly=self.calls_each_once)

    def fail(self, where: int, error: BaseException, mode: str) -> None:
        def raise_error(*_: object) -> None:
            raise error

        def do(root: nn.Module) -> torch.Tensor:
            hook = pick(list(root.m.modules()), where * 5).register_forward_hook(raise_error)
            try:
                with in_mode(mode):
                    return root.m(self.x)
            finally:
                hook.remove()

        self.compare(do)
        if self.in_batch:
            self.end_batch("")

    def within(self, where: int, what: str) -> None:
        """Something beside the computing, in the middle of a call."""

        def do(root: nn.Module) -> tuple[torch.Tensor, list[object]]:
            seen: list[object] = []

            def act(*_: object) -> None:
                hook.remove()
                if what in ("state_dict", "copy"):
                    state = root.state_dict()
                    read = {key: state[key] for key in state if not is_written(root, key)}
                    seen.append(copy.deepcopy(read) if what == "copy" else read)
                elif what == "other":
                    seen.append(root.other(self.x))
                else:
                    out = root.m.lists[0][0].parts[0](self.x)
                    seen.append(out)

            blocks = [block for one in root.m.lists for block in one]
            hook = pick(blocks, where).parts[0].register_forward_hook(act)
            try:
                with torch.no_grad():
                    out = root.m(self.x)
            finally:
                hook.remove()
            return out, seen

        self.compare(do)

    def edit(self, how: str, which: int) -> None:
        if self.in_batch:  # it counts from the next batch on
            self.end_batch("")
        if any(p.is_inference() for root in self.both for p in root.m.parameters()):
            return  # a forward assigned it in inference mode: torch itself lets nobody edit it
        for root in self.both:
            edit(root, how, which)
        self.note_objects()

    def functional_call(self, mode: str) -> None:
        def do(root: nn.Module) -> object:
            others = {
                name: torch.full_like(p, 0.125)
                for name, p in root.m.named_parameters()
                if "parametrizations" not in name
            }
            with in_mode(mode):
                out = torch.func.functional_call(root.m, others, (self.x,))
            return out, [v for v in others.values()]

        self.compare(do)

    def state_dict(self, _: str) -> None:
        self.compare(lambda root: {k: v.clone() for k, v in root.state_dict().items()})

    def copy(self, copied: Callable[[nn.Module], object]) -> None:
        with suppress_refusals():
            copied(self.off)

    def to(self, dtype: torch.dtype) -> None:
        if self.callbacks and isinstance(self.callbacks[0], LayerwiseOffload):
            before = [tensor.dtype for _, tensor in tensors_of(self.off)]
            with suppress_refusals():
                self.off.m.to(dtype)
            assert [tensor.dtype for _, tensor in tensors_of(self.off)] == before
        elif dtype is torch.float32:  # others may be cast, but for the input's sake not to more
            for root in self.both:
                root.m.to(dtype)

    def threads(self, _: str) -> None:
        def do(root: nn.Module) -> list[torch.Tensor]:
            def work(model: nn.Module) -> list[torch.Tensor]:
                with torch.no_grad():
                    return [model(self.x) for _ in range(2)]

            if root is self.plain:
                return [work(root.m), work(root.other)]
            with ThreadPoolExecutor(2) as pool:
                return [f.result() for f in [pool.submit(work, m) for m in (root.m, root.other)]]

        self.compare(do)

    def begin_batch(self, _: str) -> None:
        try:
            self.tell("on_predict_batch_start")
        except RuntimeError as error:
            if REFUSALS.search(str(error)):
                raise Refused from error
            raise
        self.in_batch = True

    def end_batch(self, _: str) -> None:
        self.tell("on_predict_batch_end")
        self.in_batch = False

    def attach_again(self, placement) -> None:
        self.detach()
        if placement:
            self.makers[0] = placement
        self.attach()

    def detach(self) -> None:
        self.in_batch = False
        for callback in reversed(self.callbacks):
            callback.detach()
        self.callbacks = []

    # What holds.

    def check(self) -> None:
        for engine in vars(self.off).get("_offload_engines", {}).values():
            engine.check()

    def check_restored(self) -> None:
        before, after = self.objects, dict(self.off.named_parameters(remove_duplicate=False))
        assert before.keys() == after.keys()
        written = [name for name in after if after[name] is not before[name]]
        assert all(is_assigned(self.off, name) for name in written), written
        for module in self.off.modules():
            hooks = (
                *module._forward_hooks,
                *module._forward_pre_hooks,
                *module._state_dict_hooks.values(),
            )
            assert not hooks
            left = set(vars(module)) & {"_call_impl", "forward", "_apply", "_offload_engines"}
            assert not left, left
        for (name, one), (_, other) in zip(
            tensors_of(self.off), tensors_of(self.plain), strict=True
        ):
            assert type(one) is type(other), name
            assert one.requires_grad == other.requires_grad, name
            assert_equal(one, other, name)


@contextmanager
def suppress_refusals():
    """What may not be done while a module is placed says so."""
    try:
        yield
    except RuntimeError as error:
        if "is being offloaded" not in str(error):
            raise


def tensors_of(root: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]


def is_written(root: nn.Module, name: str) -> bool:
    """Whether a forward writes it: what it has written is not to be seen before its end."""
    owner = root
    for part in name.split(".")[:-1]:
        owner = owner.get_submodule(part)
        if isinstance(owner, Writer | Cache | Normed) or hasattr(owner, "parametrizations"):
            return True
    return False


def is_assigned(root: nn.Module, name: str) -> bool:
    """Whether the forward itself puts another parameter there."""
    owner = root.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, Writer) and owner.how == "by assignment"


def in_mode(mode: str):
    if mode == "no_grad":
        return torch.no_grad()
    return torch.inference_mode() if mode == "inference" else nullcontext()


def edit(root: nn.Module, how: str, which: int) -> None:
    chosen = random.Random(which)
    names = [n for n, p in root.m.named_parameters() if "parametrizations" not in n and p.numel()]
    name = chosen.choice(names)
    owner_name, _, leaf = name.rpartition(".")
    owner = root.m.get_submodule(owner_name)
    weight = owner._parameters[leaf]
    value = chosen.choice([0.25, -0.5])
    with torch.no_grad():
        if how == "in place":
            weight.fill_(value)
        elif how == "through .data":
            weight.data.mul_(value)
        elif how == "another .data":
            weight.data = torch.full_like(weight, value)
        elif how == "another parameter":
            setattr(owner, leaf, nn.Parameter(torch.full_like(weight, value)))
        elif how == "another buffer":
            buffers = [name for name, _ in root.m.named_buffers()]
            if buffers:
                owner_name, _, leaf = chosen.choice(buffers).rpartition(".")
                owner = root.m.get_submodule(owner_name)
                setattr(owner, leaf, owner._buffers[leaf].clone() + 1)
        elif how.startswith("load_state_dict"):
            state = {key: tensor.clone() for key, tensor in root.m.state_dict().items()}
            for tensor in state.values():
                tensor.copy_(tensor * value)
            root.m.load_state_dict(state, assign="assign" in how)
        elif how == "all weights of a block":
            for parameter in chosen.choice([b for one in root.m.lists for b in one]).parameters():
                parameter.mul_(value)
        elif how == "requires_grad":
            for parameter in owner.parameters():
                parameter.requires_grad_(not parameter.requires_grad)
        else:
            for module in root.m.modules():
                if isinstance(module, Tied):
                    module.b.weight = nn.Parameter(module.b.weight.detach() * value)
                    return


def assert_equal(one: object, other: object, name: str = "", *, rtol: float = 0) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor), name
        assert one.dtype == other.dtype, name
        bounds = {"rtol": rtol, "atol": rtol / 10, "equal_nan": True}
        torch.testing.assert_close(one, other, **bounds, msg=lambda text: f"{name} {text}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], key, rtol=rtol)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, name, rtol=rtol)
    else:
        assert one == other


def check_case(model, placement, second, steps) -> None:
    twins = Twins(model, placement, second)
    twins.attach()
    try:
        for step in steps:
            twins.run(step)
            if step[0] in ("call", "backward", "fail", "within", "threads"):
                twins.check()
    except Refused:
        twins.detach()
        return
    twins.detach()
    twins.check_restored()
    twins.call("no_grad")


def check_cases(count: int, *, number: int, limit_s: float) -> None:
    """Check so many cases, or as many as there is time for."""
    end, checked = time.monotonic() + limit_s, 0

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(models, placements, seconds, st.lists(operations, min_size=1, max_size=8))
    def check(model, placement, second, steps) -> None:
        nonlocal checked
        if time.monotonic() < end:
            check_case(model, placement, second, steps)
            checked += 1

    check()
    if checked < count:
        warnings.warn(f"There was time for {checked} of {count} cases.", stacklevel=2)


def test_any_module_gives_what_its_plain_twin_gives_or_refuses_in_documented_words():
    check_cases(150, number=0, limit_s=30)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(1, 7))
def test_any_module_gives_what_its_plain_twin_gives_in_many_cases(number):
    check_cases(500, number=number, limit_s=240)
