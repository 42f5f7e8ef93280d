"""Searches all splits of a model's layers over hosts for the best one, as `layer_plan.py` defines it. No MLX.

For every possible number of layers of the largest stage, which decides the KV bytes of a layer, it finds the
least longest stage time by bisection over all possible stage times. It tests a time by a walk along the model
with the set of layers at which a stage can end. A host's need depends only on where its first stage begins
and its last one ends, so its ranks share its memory in any proportion.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from distributed.planning.capacities import HostCapacity, KVReserve
from distributed.planning.model_shape import ModelShape

_UNLIMITED = float("inf")


@dataclass(frozen=True)
class _Ground:
    """A host in the order of the model: its stages, and the bytes of embeddings and head there."""

    host: HostCapacity
    ends_bytes: int  # embeddings and head that its ranks hold
    has_last: bool

    def kind(self, number: int) -> tuple[float, bool]:
        """Return the speed of one of its stages, and whether it is the model's last stage."""
        return self.host.speed, self.has_last and number == self.host.num_ranks - 1


@dataclass(frozen=True)
class _Bounds:
    """Bounds of every stage: at most `most` layers, and no longer than `longest`."""

    most: int
    is_reached: bool  # some stage must have `most` layers
    longest: float = _UNLIMITED


# The number of layers dealt, and whether one stage so far has `most` layers.
_Place = tuple[int, bool]
_Dealt = dict[_Place, tuple[float, tuple[int, ...]]]  # least sum of squares, ends of the stages


class Splitter:
    """Searches the splits of one model over hosts; stages are numbered from the first layers on."""

    def __init__(self, shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve) -> None:
        self._shape = shape
        self._kv = kv
        self._grounds = _make_grounds(shape, hosts)
        self._num_ranks = sum(host.num_ranks for host in hosts)
        self._has_limits = any(host.memory_bytes is not None for host in hosts)

    def find(self) -> tuple[range, ...] | None:
        """Return the best split, by rank; None if none fits."""
        times, best, high = self._times, None, len(self._times)
        for bounds in self._all_bounds():
            if high and self._reaches(bounds, times[high - 1]):
                reaches = partial(self._reaches, bounds)
                high = bisect_left(times, True, hi=high - 1, key=reaches)
                best = replace(bounds, longest=times[high])
        return None if best is None else self._most_even(best)

    def fits(self) -> bool:
        """Whether any split fits."""
        return any(self._reaches(bounds, _UNLIMITED) for bounds in self._all_bounds())

    def _all_bounds(self) -> Iterator[_Bounds]:
        """Yield bounds for each possible number of layers of the largest stage."""
        num_layers = self._shape.num_layers
        if not self._has_limits or not self._kv.reserve_bytes or self._shape.has_unlike_layers:
            yield _Bounds(num_layers, is_reached=False)
            return
        for most in range(-(-num_layers // self._num_ranks), num_layers - self._num_ranks + 2):
            yield _Bounds(most, is_reached=True)

    @cached_property
    def _times(self) -> list[float]:
        """Every possible stage time, in rising order."""
        return sorted({time for rows in self._rows.values() for row in rows for time in row})

    @cached_property
    def _rows(self) -> dict[tuple[float, bool], list[list[float]]]:
        """(speed, is last stage) -> for each first layer, the stage times by number of layers."""
        kinds = {ground.kind(number) for ground in self._grounds for number in range(ground.host.num_ranks)}
        return {kind: [self._row(start, *kind) for start in range(self._shape.num_layers)] for kind in kinds}

    def _row(self, start: int, speed: float, is_last: bool) -> list[float]:
        stops = range(start + 1, self._shape.num_layers + 1)
        return [self._shape.stage_cost(range(start, stop), is_last=is_last) / speed for stop in stops]

    def _reaches(self, bounds: _Bounds, longest: float) -> bool:
        """Whether stages within the bounds can hold all layers; bit n of a mask: n layers are dealt."""
        bounds = replace(bounds, longest=longest)
        without, reached = (1, 0) if bounds.is_reached else (0, 1)
        for ground in self._grounds:
            if ground.host.num_ranks == 1:
                without, reached = self._advance(ground, 0, None, (without, reached), bounds)
                continue
            after = (0, 0)
            for start in range(self._shape.num_layers):
                inner = without & 1 << start, reached & 1 << start
                for number in range(ground.host.num_ranks if any(inner) else 0):
                    inner = self._advance(ground, number, start, inner, bounds)
                after = (after[0] | inner[0], after[1] | inner[1]) if any(inner) else after
            without, reached = after
        return bool(reached >> self._shape.num_layers & 1)

    def _advance(
        self, ground: _Ground, number: int, host_start: int | None, masks: tuple[int, int], bounds: _Bounds
    ) -> tuple[int, int]:
        """Return masks of where one more stage can end: no stage of `most` layers so far, and with one."""
        without = reached = 0
        for at in range(self._shape.num_layers):
            bit = 1 << at
            if not (masks[0] | masks[1]) & bit:
                continue
            stops = self._stops(ground, number, at, at if host_start is None else host_start, bounds)
            bits = (1 << stops.stop) - (1 << stops.start) if stops else 0
            largest = bits & bit << bounds.most
            if masks[0] & bit:
                without, reached = without | bits & ~largest, reached | largest
            if masks[1] & bit:
                reached |= bits
        return without, reached

    def _stops(self, ground: _Ground, number: int, at: int, host_start: int, bounds: _Bounds) -> range:
        """Return where a stage that starts at layer `at` may end; its host's layers begin at `host_start`."""
        num_layers = self._shape.num_layers
        if at >= num_layers:
            return range(0)
        kind = ground.kind(number)
        most = min(bisect_right(self._rows[kind][at], bounds.longest), bounds.most)
        stop = min(at + most, self._last_stop(ground, host_start, bounds.most))
        if kind[1]:  # the model's last stage
            return range(num_layers, stop + 1)
        return range(at + 1, stop + 1)

    def _last_stop(self, ground: _Ground, start: int, most_layers: int) -> int:
        """Return the furthest end of a host's layers from `start` on; at most `start` if it holds none."""
        shape, memory = self._shape, ground.host.memory_bytes
        if memory is None:
            return shape.num_layers
        room, num_ranks = memory - ground.ends_bytes, ground.host.num_ranks

        def needed(num_layers: int) -> int:
            layers = range(start, start + num_layers)
            return shape.layers_bytes(layers) + self._kv.ranks_bytes(shape, layers, most_layers, num_ranks)

        lengths = range(1, shape.num_layers - start + 1)
        return start + bisect_right(lengths, room, key=needed)

    def _most_even(self, bounds: _Bounds) -> tuple[range, ...]:
        """Return, by rank, the split within the bounds with the least sum of squared stage times."""
        dealt: _Dealt = {(0, not bounds.is_reached): (0.0, ())}
        for ground in self._grounds:
            if ground.host.num_ranks == 1:
                dealt = self._deal(ground, 0, None, dealt, bounds)
                continue
            after: _Dealt = {}
            for place, value in dealt.items():
                inner = {place: value}
                for number in range(ground.host.num_ranks):
                    inner = self._deal(ground, number, place[0], inner, bounds)
                _keep_better(after, inner)
            dealt = after
        ends = dealt[self._shape.num_layers, True][1]
        stages = [range(start, end) for start, end in zip((0, *ends), ends, strict=False)]
        return tuple(reversed(stages))

    def _deal(
        self, ground: _Ground, number: int, host_start: int | None, dealt: _Dealt, bounds: _Bounds
    ) -> _Dealt:
        """Deal layers to one more stage."""
        after: _Dealt = {}
        for (at, has), (squares, ends) in dealt.items():
            row = self._rows[ground.kind(number)][at] if at < self._shape.num_layers else []
            for stop in self._stops(ground, number, at, at if host_start is None else host_start, bounds):
                time = row[stop - at - 1]
                place = stop, has or stop - at == bounds.most
                _keep_better(after, {place: (squares + time * time, (*ends, stop))})
        return after


def _keep_better(dealt: _Dealt, others: _Dealt) -> None:
    for place, value in others.items():
        if place not in dealt or value < dealt[place]:
            dealt[place] = value


def _make_grounds(shape: ModelShape, hosts: Sequence[HostCapacity]) -> list[_Ground]:
    """Return the hosts in the order of the model, with the bytes of embeddings and head on each."""
    grounds = []
    for number, host in enumerate(hosts):
        has_first, has_last = number == len(hosts) - 1, number == 0
        ends = (shape.embed_bytes if has_first else 0) + (shape.head_bytes if has_last else 0)
        if has_first and has_last and host.num_ranks == 1 and shape.tied:
            ends -= shape.embed_bytes
        grounds.append(_Ground(host, ends, has_last))
    return grounds[::-1]
