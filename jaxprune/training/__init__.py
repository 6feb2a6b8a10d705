"""State, steps, optimizer, sharding, checkpoints and the loop; loss, batches and plan are arguments."""
