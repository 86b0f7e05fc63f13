"""The mathematics: pure functions, without logging or collectives; what draws at random takes a seed or a generator."""
