"""The kept clips as shards and an index; what is taken out again; what is in them."""
