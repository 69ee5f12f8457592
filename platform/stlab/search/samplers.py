"""Samplers and pruners of Optuna, by name."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

from stlab.study.spec import SearchSpec

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study

_REDUCTION = 3  # successive halving and Hyperband continue one trial in three


def create_sampler(search: SearchSpec, name: str, number: int) -> BaseSampler:
    """The sampler that chooses one point.

    Every point has a sampler of its own, seeded by the search's seed, its name and the point's number, so the point is a function of
    these and of the earlier trials. An interrupted search therefore continues exactly as it would have without the interruption, and
    does not repeat its random start. State that a sampler keeps beyond the trials (CMA-ES, NSGA-II) is in their system attributes.

    Args:
        name: name of the study and the branch.
        number: number of the trial, from 0.
    """
    import optuna

    seed = int.from_bytes(hashlib.sha256(f"{search.seed}/{name}/{number}".encode()).digest()[:4], "big")
    startup = search.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "tpe":
            # With groups, fields that are searched under the same condition are modelled together.
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
        if search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if search.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if search.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, startup))
        return optuna.samplers.RandomSampler(seed=seed)


def settle(sampler: BaseSampler, study: Study) -> None:
    """Have a genetic sampler choose the parents of the next generation before it is asked for a point.

    NSGA-II has the parents in the order of their ranks when it chooses them, and in the order of their numbers when it reads them back.
    So a resumed search would cross other pairs than an uninterrupted one. If they are always read back, the pairs are the same.
    """
    from optuna.samplers import BaseGASampler

    if isinstance(sampler, BaseGASampler) and sampler.population_size is not None:
        generation = 0
        while len(sampler.get_population(study, generation)) >= (sampler.population_size or 1):
            generation += 1
        sampler.get_parent_population(study, generation)


def create_pruner(search: SearchSpec, max_epochs: int) -> BasePruner:
    """The pruner of a search. The resource of successive halving and Hyperband is the epoch."""
    import optuna

    if search.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=search.pruner_warmup)
    least = min(search.pruner_warmup, max_epochs)
    if search.pruner == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=_REDUCTION)
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=max_epochs, reduction_factor=_REDUCTION)
    return optuna.pruners.NopPruner()
