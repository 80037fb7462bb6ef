"""What the graphs of routers, and of those that foresee them, call their outputs."""

EXPERT_IDS, EXPERT_WEIGHTS, SHARED_WEIGHT = 'expert_ids', 'expert_weights', 'shared_weight'
LIKELY = 'likely'
