"""The job around the library: manifest, plan, shards, Ray, storage and the command line."""
