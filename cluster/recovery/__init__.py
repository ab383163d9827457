"""What happens after a fault: who goes on, with which ranks, and for how long it is tried."""
