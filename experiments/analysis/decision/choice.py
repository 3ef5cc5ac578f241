"""Which plan to use, from predictions and verdicts: the best guess, and the settled plan."""

from collections.abc import Sequence

from experiments.analysis.decision.plan_net import PlanNets, joint_plan_quantile
from experiments.analysis.design_table import DesignTable
from experiments.analysis.verdicts import Verdict
from experiments.recipes.decision_rule import DecisionRule
from experiments.recipes.factorial import Arm


def by_utility(nets: PlanNets, table: DesignTable) -> list[int]:
    """Return the plans' indices, the largest expected net gain first; of equals, the fewest treated sites."""
    utility = nets.shrunk - nets.price
    treated = [sum(level != table.baseline for level in levels) for levels in nets.levels]
    return sorted(range(len(nets.levels)), key=lambda plan: (-utility[plan], treated[plan]))


def settled_plan(
    nets: PlanNets, verdicts: Sequence[Verdict], table: DesignTable, rule: DecisionRule
) -> int | None:
    """Return the plan of the sites that PAY alone, if its own net gain is certainly above zero.

    Args:
        nets: all plans that could be recommended.
        verdicts: of the sites.
        table: the design.
        rule: gives the confidence.
    """
    levels = _paying(verdicts, table)
    if levels is None or levels not in nets.levels:
        return None
    plan = nets.levels.index(levels)
    low = nets.net[plan] - joint_plan_quantile(nets, table, rule) * nets.error[plan]
    return plan if low > 0 else None


def _paying(verdicts: Sequence[Verdict], table: DesignTable) -> Arm | None:
    """Return the plan that treats the sites that PAY without a reserve; None if none does."""
    paying = sorted((v for v in verdicts if v.pays_alone), key=lambda v: v.net)
    chosen = {v.site: v.treatment for v in paying}  # of several treatments of a site the best one
    return tuple(chosen.get(site, table.baseline) for site in table.sites) if chosen else None
