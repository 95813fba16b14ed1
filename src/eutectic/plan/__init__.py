"""What a run will cost: time, memory and money, on this machine and on a cluster."""
