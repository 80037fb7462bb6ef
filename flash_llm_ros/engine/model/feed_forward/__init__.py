"""The feed-forward block, of a kind: dense, or gated by predictors."""
