"""A shard in its process: rows fetched ahead, aligned in batches, published as one part, whatever hangs or dies."""
