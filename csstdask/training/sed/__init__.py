"""Train the networks that predict SEDs."""
