"""From trials to statements: means, intervals, paired comparisons, curves along an axis."""
