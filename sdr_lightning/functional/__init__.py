"""The mathematics: pure functions of tensors, without randomness, logging or collectives."""
