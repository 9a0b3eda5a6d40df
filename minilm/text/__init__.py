"""Text in, batches out: tokenizers, downloads, shards, packing, the embedded corpus."""
