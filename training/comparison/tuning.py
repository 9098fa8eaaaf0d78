"""
How the arms are tuned: all over the same grid, which widens for each until its best point lies inside.

A point is interior where, on every axis, a lower and a higher value was tried with the others as they are.
"""

import itertools
import math
from collections.abc import Collection
from typing import Any

from ..config import PretrainConfig
from .arms import ARMS, Contest, Point, plan_tuning
from .sweep import PlannedRun, execute


# Of each point that was tried; minus infinity where the run diverged, or the configuration refuses the value.
Scores = dict[Point, float]


def grid_points(grid: list[str], config: PretrainConfig) -> list[Point]:
    """All combinations of the values of `KEY=V1,V2,...`; unset, half, one and two times the learning rate."""
    if not grid:
        rate = config.optimization.learning_rate
        grid = [f"optimization.learning_rate={','.join(f'{rate * factor:g}' for factor in (0.5, 1, 2))}"]
    axes = []
    for axis in grid:
        key, _, values = axis.partition("=")
        if not key or not values:
            raise ValueError(
                f"--grid {axis!r} is not of the form KEY=V1,V2,..., for instance optimization.learning_rate=1e-3,2e-3."
            )
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))


def tune(contest: Contest, grid: list[Point], max_points: int, num_steps: dict[str, int]) -> dict[str, dict[str, Any]]:
    """
    Of each arm: what it is tuned by, the points that were tried with their scores (`None` where there is none), and the
    best of them. A grid of one point is the choice, without a run.

    Raises:
        ValueError: a run failed, or all runs of an arm diverged.
    """
    tried: dict[str, Scores] = {name: {} for name in ARMS}
    due = {name: grid if len(grid) > 1 else [] for name in ARMS}
    while any(due.values()):
        runs = {
            (name, point): plan_tuning(contest, name, point, num_steps[name])
            for name, points in due.items()
            for point in points
        }
        require_finished(list(runs.values()), contest.jobs, may_diverge=True)
        for (name, point), run in runs.items():
            tried[name][point] = -math.inf if run.has_diverged else _score(name, run)
        due = {name: _further(contest, name, num_steps[name], tried[name], max_points) for name in ARMS}
    return {name: _found(name, tried[name] or {grid[0]: -math.inf}) for name in ARMS}


def require_finished(runs: list[PlannedRun], jobs: int, may_diverge: bool = False) -> None:
    """
    Execute the runs.

    Raises:
        ValueError: some failed; those that diverged count where they may not.
    """
    failed = [run for run in execute(runs, jobs) if not (may_diverge and run.has_diverged)]
    if failed:
        raise ValueError(f"{len(failed)} run(s) failed; mend the cause, and the same command goes on from here.")


def _score(name: str, run: PlannedRun) -> float:
    evaluation = run.evaluation()
    return sum(weight * evaluation[value] for value, weight in ARMS[name].tuned_by.items())


def _further(contest: Contest, name: str, num_steps: int, scores: Scores, max_points: int) -> list[Point]:
    """The point to try next, if there is one."""
    if not scores:
        return []
    if max(scores.values()) == -math.inf:
        raise ValueError(f"Every run of {ARMS[name].title!r} diverged; give --grid lower learning rates.")
    while len(scores) < max_points and (point := missing_neighbour(scores)):
        try:
            plan_tuning(contest, name, point, num_steps)
        except ValueError:  # The values end here.
            scores[point] = -math.inf
        else:
            return [point]
    return []


def _found(name: str, scores: Scores) -> dict[str, Any]:
    points = [
        {"overrides": list(point), "score": score if math.isfinite(score) else None} for point, score in scores.items()
    ]
    return {"tuned_by": ARMS[name].tuned_by, "points": points, "chosen": list(max(scores, key=scores.get))}


def open_ends(points: Collection[Point], chosen: Point) -> list[tuple[int, bool]]:
    """Where the chosen point lies at an edge: the axes, and whether no higher value (or else no lower) was tried."""
    found = []
    for axis in range(len(chosen)):
        if len(_values(points, axis)) > 1:
            line = _values([point for point in points if _others(point, axis) == _others(chosen, axis)], axis)
            (value,) = _values([chosen], axis)
            found += [(axis, is_upper) for is_upper, end in ((False, line[0]), (True, line[-1])) if value == end]
    return found


def missing_neighbour(scores: Scores) -> Point | None:
    """
    A point beside the best one, where that lies at an edge: as far from it as the outermost two values of the axis are
    from each other, geometrically. `None` where the best point is interior, or its values are not all positive.
    """
    best = max(scores, key=scores.get)
    for axis, is_upper in open_ends(scores, best):
        values = _values(scores, axis)
        if values[0] > 0:
            end, neighbour = (values[-1], values[-2]) if is_upper else (values[0], values[1])
            (value,) = _values([best], axis)
            key = best[axis].partition("=")[0]
            return (*best[:axis], f"{key}={value * end / neighbour:g}", *best[axis + 1 :])
    return None


def _others(point: Point, axis: int) -> Point:
    return point[:axis] + point[axis + 1 :]


def _values(points: Collection[Point], axis: int) -> list[float]:
    """The different values on an axis, ascending; none where they are no numbers."""
    try:
        return sorted({float(point[axis].partition("=")[2]) for point in points})
    except ValueError:
        return []
