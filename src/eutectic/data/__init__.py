"""Where structures come from: cards, the store, splits, statistics, mixtures."""
