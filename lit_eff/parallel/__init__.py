"""Training on several processes: FSDP2 sharding, its strategy, and checkpoints that are whole or absent."""
