"""Published methods that results are compared with."""
