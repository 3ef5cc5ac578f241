"""What the README of a calibration says besides numbers, in lines of up to 100 columns."""

from experiments.calibration.designs import AGAIN, APART, GRID

HEAD = """# Calibration: how often is a verdict right?

Simulated studies whose truth is known, fitted and judged by the code that judges real ones.

{recorded}

**Command.** `biaswise calibrate --studies {studies}`
"""
PROSE = {
    "assumptions": """\
A rate's spread is its 95 % interval (Clopper and Pearson); at a rate of 5 % in 1,000, 1.4 points.

**Unit.** The noise of one training: the standard deviation of trials of one arm within a seed.
Where it is 0.3 points, the rule is the default one: 0.1 points per per cent of a step, a margin of
0.5. Effects are net of the layer's own price.

**Assumptions.** The noise of a real study is in its report; here it is assumed:

- A seed's own level varies by 2, shared by its arms.
- Every bias adds 2 % to a step. The stopwatch visits all plans in 15 rounds; one step's time varies
  by 2 %, and what a round shares by 5 %. Priced by trials, the step time of a trial varies by 2 %.
- Scenes are resampled where the name says so, and in the comparison with the full grid: 150
  validation scenes; three tenths of a run's variance differ from scene to scene; a layer's gain
  varies between scenes so that its mean over all of them has a standard deviation of 0.16.
""",
    "planted truths": """\
All columns are per cent of the studies, but for *single intervals* (of the intervals) and
*overrated* (noises of one training).

- *any false claim*: a false PAYS, COSTS or NO DIFFERENCE of any layer, with its 95 % interval.
- *found*: every planted net gain PAYS and every planted net loss COSTS. *PAYS where it trains* (a
  larger share of trainings fails with the bias) counts as found, and as false if the bias does not
  even pay where it trains.
- *single intervals hold*: each layer's own 95 % interval of its gain, after all trials.
- *settled plan worse*, *best guess worse*: that plan's true net gain over no bias is below zero.
- *overrated*: predicted minus true net gain of the best guess, on average.

The faults:

- A *collapsed* trial ends 20 lower than it should; a *diverged* one without a number.
- *A bias that collapses 1 in 8* gains 2 where it trains and loses 0.5 on average: PAYS is false.
  Exactly one in eight of its trainings collapses, or each with that chance: then none may be seen.
- A collapse *is stopped* if it lies below all trials of the first seed by 5 at an early step.
- *Early stopping* ends the worst quarter of every seed's trials. Here and there, the early value
  correlates 0.8 with the last one.
- *Seed x site*: a layer's gain varies from seed to seed by so much.
- *Drift*: the last trial's step takes so much longer than the first one's. Trials run in random
  order within a seed, two at a time.
- *Screening*: the layers are tested in the order of a screening whose errors (0.7) correlate so
  with those of the study's trials.
- *Half the layers at the margin*: the others gain nothing, so that NO DIFFERENCE is true of these
  and false of those.
""",
    "power": """\
One layer with a net gain among layers without any, told PAYS: computed as `biaswise study power`
does, and in simulated studies priced by the stopwatch.
""",
    "design efficiency": f"""\
Six layers; each has no effect with probability one half, else one of the named size, three of four
positive.

- *agrees*: the PAYS layers are those of the full grid ({GRID.most_trials} trials).
- A study's trainings are some of the grid's own, as if the grid had been completed afterwards. Only
  *{APART.name}* and *{AGAIN.name}* have other trainings and
  other scenes.

Both sides may err: two procedures with up to 2.5 % false PAYS each (half of the 5 % that the rule
allows in both directions) disagree in up to 5 % of the studies even if no gain is ever missed. How
often another full grid agrees with the first is the best that trainings of one's own can reach.

A *screening* trains once with the bias in all layers, with a seed that no trial has, evaluates that
with layers switched off, and ranks them (`order_by` of a rule). Its estimates are assumed to err by
0.7, or by twice that. Holm's procedure then weighs each layer twice as much as the next.
""",
    "smaller effects": """\
One look at the end, half of the layers with the effect, confidence 0.95.
""",
}
"""Part of the README -> what it says."""
