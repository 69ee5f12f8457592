"""Models that pass messages between the nodes of a network, given or learnt."""
