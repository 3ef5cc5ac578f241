"""Studies whose truth is known, drawn as arrays; the unit is the noise of one training."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from experiments.analysis.design_table import DesignTable, TrialRow
from experiments.analysis.model.fit import Response
from experiments.analysis.model.linear_model import fit_gain
from experiments.recipes.factorial import Factor, fraction, full, one_at_a_time

COLLAPSE = 20.0
"""What a collapsed training loses, in noises."""


def table_of(design, seeds):
    trials = [TrialRow(f"{i}-s{seed}", seed, arm) for i, arm in enumerate(design.arms) for seed in seeds]
    return DesignTable(design.sites, tuple(trials), ())


def _factors(count):
    return [Factor(f"s{i}") for i in range(count)]


TABLES = {
    "3x2": table_of(full(_factors(3)), range(2)),
    "3x3": table_of(full(_factors(3)), range(3)),
    "6fx2": table_of(fraction(_factors(6), 2), range(2)),
    "one at a time": table_of(one_at_a_time(_factors(6)), range(4)),
}


@dataclass(frozen=True)
class Planted:
    """A truth: the first layer's gain, what gains vary by between seeds, the noise under the first layer."""

    design: str
    gain: float = 0.0
    between_seeds: float = 0.0
    noise_with_first: float = 1.0
    collapsed: int = 0
    pair: float = 0.0

    def draw(self, rng):
        """Return the response of one study, and the names of the trials that collapsed."""
        table = TABLES[self.design]
        on = table.treated
        seed = np.array([trial.seed for trial in table.trials])
        shift = self.between_seeds * rng.standard_normal((len(table.seeds), on.shape[1]))
        noise = rng.standard_normal(len(on)) * np.where(on[:, 0] == 1, self.noise_with_first, 1.0)
        values = self.gain * on[:, 0] + (on * shift[seed]).sum(axis=1) + noise
        values += 2 * rng.standard_normal(len(table.seeds))[seed]
        values += self.pair * (on[:, 0] - 0.5) * (on[:, -1] - 0.5)
        fallen = rng.choice(len(on), self.collapsed, replace=False)
        values[fallen] -= COLLAPSE
        return Response(values), {table.trials[i].name for i in fallen}


@dataclass
class Tally:
    """Counts over studies."""

    studies: int = 0
    false: int = 0
    found: int = 0
    lost: int = 0
    missed: int = 0
    covered: int = 0
    covered_first: int = 0
    intervals: int = 0


def tally(planted, studies, seed=0):
    """Judge studies by Holm's procedure at 5 per cent."""
    rng = np.random.default_rng(seed)
    table, count = TABLES[planted.design], Tally()
    truth = np.zeros(len(table.terms))
    truth[0] = planted.gain
    for _ in range(studies):
        response, fallen = planted.draw(rng)
        fit = fit_gain(response, table)
        claimed = rejected(2 * stdtr(fit.df, -np.abs(fit.effect) / fit.error))
        count.studies += 1
        count.false += bool((claimed & (truth == 0)).any())
        count.found += bool(claimed[0])
        count.lost += bool(set(fit.collapsed) - fallen)
        count.missed += bool(fallen - set(fit.collapsed))
        holds = np.abs(fit.effect - truth) < -stdtrit(fit.df, 0.025) * fit.error
        count.covered += int(holds.sum())
        count.covered_first += bool(holds[0])
        count.intervals += len(truth)
    return count


def rejected(p_values, level=0.05):
    """Return which hypotheses Holm's procedure rejects."""
    claimed = np.zeros(len(p_values), dtype=bool)
    for tested, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - tested):
            break
        claimed[index] = True
    return claimed
