"""Data sets that networks learn from and are judged with."""
