"""What all networks share: blocks, weights and their cards, device and precision, one trainer."""
