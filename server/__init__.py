"""What an operator runs: the coordinator, its shell over Flower, and the results."""
