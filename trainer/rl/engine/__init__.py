"""The rollout engine: many answers at once from one decoder, with the probabilities they had."""
