"""Units, the window that feeds them to Dask, and the ledger that remembers them. No astronomy."""
