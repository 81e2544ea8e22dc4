"""The steps in order, and the stories of an ingest, a run and an export: the room that knows all others."""
