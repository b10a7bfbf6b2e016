"""Detection of diverged training: which steps are used, when a run returns to an earlier state, and which states are good.

A network without normalisation can diverge from one step to the next: the loss becomes fifty times as large, the gradient infinite, and
both stay so. A single outlier proves nothing. So every step is compared with the steps before it, and only many outliers within a short
time mean that the weights have diverged. This file handles numbers only, no files and no networks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from enum import Enum
from statistics import median

WINDOW = 101  # used steps that a step is compared with
ENOUGH = 50  # with fewer used steps than this the median is not reliable: only what is not finite is an outlier
# Forty steps of 2 crops of 256×256: losses up to 1.8 times their median (3.3 median deviations), norms up to 1.8 times theirs, both about
# log-normal with 0.3. Diverged weights gave 50 times the loss and an infinite norm.
LOSS_DEVIATIONS = 10.0
LOSS_SHARE = 1.0
NORM_FACTOR = 10.0
RECENT = 50  # steps; of these…
MANY = 10  # …so many outliers mean that the weights have diverged
CLEAN = 3  # steps that must have been used last before a state may be called good

WORSE_SHARE = 0.1  # a good state's score may be worse than the best one by this; a rate that rises again costs 2%
RAW_FACTOR = 3.0  # the weights themselves may be worse than their averages by this factor; usually it is 1.0 to 1.1


class Verdict(Enum):
    """What to do with a step: change the weights by it, leave it out, or leave it out and go back to a good state."""

    USE = "use"
    SKIP = "skip"
    GO_BACK = "go back"


class Guard:
    """Judges the steps of a run by their loss and the norm of their gradient.

    The same numbers in the same order give the same answers, so processes that get the same numbers decide alike.
    verdict: on the last step.

    >>> guard = Guard()
    >>> [guard.judge(1.0, 2.0) for _ in range(60)][-1]
    <Verdict.USE: 'use'>
    >>> guard.judge(37.0, 2.0)
    <Verdict.SKIP: 'skip'>
    >>> [guard.judge(37.0, float("inf")) for _ in range(9)][-1]
    <Verdict.GO_BACK: 'go back'>
    """

    def __init__(self) -> None:
        self.verdict = Verdict.USE
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._skipped: deque[bool] = deque(maxlen=RECENT)
        self._kind: Hashable = None
        self._unsettled = 0  # used steps that are still to come until a run that went back has a good state again

    def judge(self, loss: float, norm: float, kind: Hashable = None) -> Verdict:
        """The verdict on a step with that loss and gradient norm.

        kind: of the samples; where it changes (larger crops, say) the medians begin anew.
        """
        if kind != self._kind:
            self._losses.clear()
            self._norms.clear()
            self._kind = kind
        outlier = self._is_outlier(loss, norm)
        self._skipped.append(outlier)
        if not outlier:
            self._losses.append(loss)
            self._norms.append(norm)
            self._unsettled = max(0, self._unsettled - 1)
            self.verdict = Verdict.USE
        else:
            self.verdict = Verdict.GO_BACK if sum(self._skipped) >= MANY else Verdict.SKIP
        return self.verdict

    @property
    def experienced(self) -> bool:
        """Whether enough steps were used for medians: before, scores may become worse too, as at the start of a run."""
        return len(self._losses) >= ENOUGH

    @property
    def settled(self) -> bool:
        """Whether the last steps show sound weights: they were used, and enough of them where the run went back before."""
        return self._unsettled == 0 and not any(list(self._skipped)[-CLEAN:])

    def went_back(self) -> None:
        """The weights are those of a good state: earlier outliers no longer count, the medians stay."""
        self._skipped.clear()
        self._unsettled = RECENT
        self.verdict = Verdict.USE

    def _is_outlier(self, loss: float, norm: float) -> bool:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        if len(self._losses) < ENOUGH:
            return False
        middle = median(self._losses)
        deviation = median(abs(earlier - middle) for earlier in self._losses)
        margin = max(LOSS_DEVIATIONS * deviation, LOSS_SHARE * abs(middle))
        return loss > middle + margin or norm > NORM_FACTOR * median(self._norms)


def objection(averaged: float, raw: float, best: float | None) -> str | None:
    """Why a state with these scores (lower is better) is not a good one; None for a good one.

    averaged, raw: of the averaged weights and of the weights themselves, on the same pictures. The averages alone are not enough: the
                   last steps hardly change them.
    best:          the best score of averaged weights so far, None when there is none.
    """
    if not math.isfinite(averaged):
        return f"the averaged weights score {averaged:g}"
    if not raw <= RAW_FACTOR * averaged:  # so that NaN is refused
        return f"the weights score {raw:.4g}, their averages {averaged:.4g}"
    if best is not None and averaged > (1 + WORSE_SHARE) * best:
        return f"the averaged weights score {averaged:.4g} after {best:.4g}"
    return None
